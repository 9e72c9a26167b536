"""Filters by name."""

from __future__ import annotations

import torch

from hyenarec_kernels.nn.filters import (
    BasisFilter,
    ChebyshevFilter,
    CosineFilter,
    ExplicitFilter,
    Filter,
    ImplicitFilter,
    LegendreFilter,
)
from hyenarec_kernels.nn.log_sparse import LogSparseFilter


def make_filter(
    name: str,
    groups: int,
    horizon: int,
    *,
    terms: int,
    window: bool,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Filter:
    """Makes the filter with this name; ``terms`` and ``window`` go to the kinds that take them. An unknown name raises
    ValueError."""
    bases: dict[str, type[BasisFilter]] = {
        "legendre": LegendreFilter,
        "chebyshev": ChebyshevFilter,
        "cosine": CosineFilter,
    }
    if name in bases:
        return bases[name](groups, horizon, terms, window, device=device, dtype=dtype)
    if name == "implicit":
        return ImplicitFilter(groups, horizon, window, device=device, dtype=dtype)
    if name == "explicit":
        return ExplicitFilter(groups, horizon, device=device, dtype=dtype)
    if name == "logsparse":
        return LogSparseFilter(groups, horizon, window, device=device, dtype=dtype)
    raise ValueError(f"filter must be {', '.join(bases)}, implicit, explicit, logsparse or a callable, got {name!r}")
