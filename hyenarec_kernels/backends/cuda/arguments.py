"""Brings arguments into the form that the compiled operators take."""

from __future__ import annotations

import torch
from torch import Tensor


def values(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.float().contiguous()


def where(starts: Tensor | None, ends: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Both contiguous and of the same dtype: callers may pass int32 ``starts`` with int64 ``ends``."""
    if starts is None or ends is None:
        return starts, None if ends is None else ends.contiguous()
    if starts.dtype is ends.dtype and starts.is_contiguous() and ends.is_contiguous():
        return starts, ends
    wider = torch.promote_types(starts.dtype, ends.dtype)
    return starts.to(wider).contiguous(), ends.to(wider).contiguous()
