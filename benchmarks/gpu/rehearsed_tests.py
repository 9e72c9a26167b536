"""A pytest plugin that runs the GPU's tests without a GPU, so that what they compile is counted. Their assertions about
values fail, because no kernel computes anything. It is a plugin because pytest imports plugins before the tests'
conftest, which asks for a GPU."""

from __future__ import annotations

from benchmarks.gpu.pretence import pretend

pretend()
