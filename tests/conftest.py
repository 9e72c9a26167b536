"""What has to be asked for before pytest reads the first file of tests.

Without a GPU the Triton kernels run in Triton's interpreter, which has to be chosen before anything imports them. And
one thread a process, chosen before torch begins: tests that fork would wait forever for threads that their child lacks.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from importlib.util import find_spec

import torch

if find_spec("triton") is not None and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
