"""Modules: long filters, the Hyena mixer with its streaming state."""

from hyenarec_kernels.nn.compact import CompactState
from hyenarec_kernels.nn.filters import (
    ChebyshevFilter,
    CosineFilter,
    ExplicitFilter,
    Filter,
    ImplicitFilter,
    LegendreFilter,
)
from hyenarec_kernels.nn.linear import Linear as Linear
from hyenarec_kernels.nn.linear import fast_linear
from hyenarec_kernels.nn.log_sparse import LogSparseFilter
from hyenarec_kernels.nn.masks import key_mask
from hyenarec_kernels.nn.mixer import HyenaMixer
from hyenarec_kernels.nn.streaming import MixerState, StreamingState

__all__ = [
    "ChebyshevFilter",
    "CompactState",
    "CosineFilter",
    "ExplicitFilter",
    "Filter",
    "HyenaMixer",
    "ImplicitFilter",
    "LegendreFilter",
    "LogSparseFilter",
    "MixerState",
    "StreamingState",
    "fast_linear",
    "key_mask",
]
