"""Modules: long filters, the Hyena mixer with its streaming state, and what puts it in attention's place."""

from hyenarec_kernels.nn.attention import HyenaSelfAttention
from hyenarec_kernels.nn.filters import (
    ChebyshevFilter,
    CosineFilter,
    ExplicitFilter,
    Filter,
    ImplicitFilter,
    LegendreFilter,
)
from hyenarec_kernels.nn.linear import Linear
from hyenarec_kernels.nn.masks import key_mask
from hyenarec_kernels.nn.mixer import HyenaMixer
from hyenarec_kernels.nn.streaming import MixerState

__all__ = [
    "ChebyshevFilter",
    "CosineFilter",
    "ExplicitFilter",
    "Filter",
    "HyenaMixer",
    "HyenaSelfAttention",
    "ImplicitFilter",
    "LegendreFilter",
    "Linear",
    "MixerState",
    "key_mask",
]
