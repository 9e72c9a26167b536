"""Defines the operators of torch's namespace ``hyenarec``.

The compiled extension also defines their forward passes, for programs without Python, and withdraws these definitions
when Python imports it. So this module imports it (`compiled.probe`) before it defines anything.
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
    """Defines ``hyenarec::name`` with this schema, implemented on every device by ``function``."""
    qualified = f"{NAMESPACE}::{name}"
    torch.library.define(qualified, schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(qualified, "default", function)
