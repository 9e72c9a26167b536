"""The benchmark suites: this folder, installed as the package ``hyenarec_benchmarks``.

``hyenarec bench`` lists the suites, ``hyenarec bench SUITE --help`` explains one. A suite is a module named in
:data:`hyenarec_benchmarks.suites.SUITES` with a function ``main()`` that reads its options from ``sys.argv`` and writes
its results with :func:`hyenarec_benchmarks.recording.write`, in the one format that is defined there. Systems and
shapes come from :mod:`hyenarec_benchmarks.registry`, the look of plots from :mod:`hyenarec_benchmarks.plots`.
"""
