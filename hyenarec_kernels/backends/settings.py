"""Reads environment variables that allow only a short list of values."""

from __future__ import annotations

import os
from collections.abc import Sequence


def value(name: str, allowed: Sequence[str]) -> str | None:
    """The variable's value; None if it is not set or is empty.

    Raises:
        ValueError: the value is not one of ``allowed``.
    """
    given = os.environ.get(name) or None
    if given is not None and given not in allowed:
        raise ValueError(f"{name}={given}: allowed are {', '.join(allowed[:-1])} and {allowed[-1]}")
    return given
