"""The benchmark suites, run from a checkout. ``python -m benchmarks`` lists them; ``python -m benchmarks SUITE --help``
explains one.

- ``front_door``: the table of suites, and how one is run. A suite is a module with a function ``main()`` that reads its
  options from ``sys.argv`` and writes its results with :func:`benchmarks.harness.recording.write`, in the one format
  that is defined there.
- ``suites``: one module each; ``gpu``: those that need a GPU or compile for one.
- ``harness``: what they share; systems and shapes come from ``harness.registry``, the look of plots from
  ``harness.plots``.
- ``report``: the page that is made from ``results``.
"""
