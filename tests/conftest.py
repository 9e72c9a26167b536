"""Settings that must be made before pytest imports the first test file.

Without a GPU the Triton kernels run in Triton's interpreter, which has to be chosen before anything imports them. Every
process gets one thread, chosen before torch starts: a forked child would wait for ever for its parent's threads, which
it does not have.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from importlib.util import find_spec

import torch

if find_spec("triton") is not None and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
