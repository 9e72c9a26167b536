"""The activations that a Hyena mixer can apply to its last gate, by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import silu

GATES: dict[str, Callable[[Tensor], Tensor]] = {"identity": lambda q: q, "sigmoid": torch.sigmoid, "silu": silu}
