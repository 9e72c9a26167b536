"""Defines the operators of namespace ``hyenarec``.

The compiled extension defines them too, their forward passes, for programs without Python. It takes its definitions
back when it is imported as a module, which is why that happens here, before the first definition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hyenarec_kernels.backends import compiled

NAMESPACE = "hyenarec"

compiled.probe()
LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]


def define(name: str, schema: str, function: Callable[..., Any]) -> None:
    """Defines ``hyenarec::name`` with this schema, served on every device by ``function``."""
    qualified = f"{NAMESPACE}::{name}"
    torch.library.define(qualified, schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(qualified, "default", function)
