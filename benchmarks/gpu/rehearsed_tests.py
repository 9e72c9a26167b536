"""A plugin of pytest: the GPU's tests without a GPU, so that what they compile is counted. What they assert of values
fails, because no kernel computes anything. pytest imports plugins before the tests' conftest, which asks for a GPU."""

from __future__ import annotations

from benchmarks.gpu.pretence import pretend

pretend()
