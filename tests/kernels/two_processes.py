"""What the checks of test_distributed.py share. Functions decorated with `check` are run by two processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

WORLD = 2
CHECKS: dict[str, Callable[[Any], None]] = {}


def check(function: Callable[[Any], None]) -> Callable[[Any], None]:
    CHECKS[function.__name__] = function
    return function


def whole(value: Tensor) -> Tensor:
    full: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value  # type: ignore[operator]
    return full
