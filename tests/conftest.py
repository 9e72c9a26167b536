"""Without a GPU the Triton kernels run in Triton's interpreter, which has to be asked for before anything imports them:
before pytest reads the first file of tests."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch

if find_spec("triton") is not None and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
