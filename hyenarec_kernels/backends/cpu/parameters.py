"""Brings parameters into the form that the compiled CPU kernels read: contiguous, in the arithmetic dtype, one value
per channel."""

from __future__ import annotations

import torch
from torch import Tensor

from hyenarec_kernels.dtypes import wide


def in_arithmetic(t: Tensor | None, x: Tensor) -> Tensor | None:
    return None if t is None else contiguous(t, wide(x.dtype))


def contiguous(t: Tensor, dtype: torch.dtype) -> Tensor:
    # check first: with cold caches these two calls take 10 us each even if they change nothing
    return t if t.dtype == dtype and t.is_contiguous() else t.to(dtype).contiguous()


def lag_major(weight: Tensor, x: Tensor) -> Tensor:  # (D, W) -> (W, D)
    return weight.to(wide(x.dtype)).T.contiguous()


def per_channel(values: Tensor, x: Tensor) -> Tensor:  # (Q, G) -> (Q, D)
    shared = x.shape[-1] // values.shape[1]
    return values if shared == 1 else values.repeat_interleave(shared, 1)


def per_group(values: Tensor, groups: int) -> Tensor:  # (Q, D) -> (Q, G)
    # torch takes 0.1 ms for a sum over groups of one channel each
    return values if groups == values.shape[1] else values.view(len(values), groups, -1).sum(-1)


def rows_per_channel(parameter: Tensor, x: Tensor) -> Tensor:  # (G, ...) -> (D, ...)
    shared = x.shape[-1] // parameter.shape[0]
    return contiguous(parameter if shared == 1 else parameter.repeat_interleave(shared, 0), wide(x.dtype))
