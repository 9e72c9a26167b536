"""Integer arguments of operators and modules: sizes, horizons, counts."""

from __future__ import annotations

import operator
from typing import SupportsIndex

import numpy as np
import torch
from torch import Tensor


def integer(op: str, name: str, value: SupportsIndex, least: int = 1) -> int:
    """Returns ``value`` as an int of at least ``least``. Anything that Python accepts as an index will do, NumPy's
    integers too, but no bool.

    Raises:
        ValueError: ``value`` is not an integer, is below ``least``, or needs more than 64 bits.
    """
    if isinstance(value, torch.SymInt):  # a size that torch.compile keeps symbolic
        number: int = value  # type: ignore[assignment]
    else:
        truth = isinstance(value, bool | np.bool_) or (isinstance(value, Tensor) and value.dtype == torch.bool)
        try:
            number = operator.index(None if truth else value)  # type: ignore[arg-type]
        except TypeError:
            raise ValueError(f"{op}: {name} must be an int, got {value!r}") from None
    if number < least:
        raise ValueError(f"{op}: {name} must be at least {least}, got {number}")
    if number >= 1 << 63:
        raise ValueError(f"{op}: {name} must fit in 64 bits, got {number}")
    return number
