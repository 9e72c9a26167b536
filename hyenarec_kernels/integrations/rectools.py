"""RecTools: layers for ``SASRecModel`` and ``BERT4RecModel`` with HyenaMixer in place of attention.

    SASRecModel(
        transformer_layers_type=HyenaSASRecLayers, transformer_layers_kwargs={"horizon": 100}, session_max_len=100
    )
    BERT4RecModel(
        transformer_layers_type=HyenaPreLNLayers, transformer_layers_kwargs={"horizon": 100, "bidirectional": True}
    )

The rest of the model stays: its blocks, training, saving and recommending. ``n_heads`` is not read.
"""

from __future__ import annotations

from typing import Any

import torch
from rectools.models.nn.transformers.net_blocks import PreLNTransformerLayers
from rectools.models.nn.transformers.sasrec import SASRecTransformerLayers
from torch import Tensor

from hyenarec_kernels.integrations.swap import replace_attention


class HyenaSASRecLayers(SASRecTransformerLayers):
    """SASRec's blocks with HyenaMixer in place of attention.

    ``horizon`` and ``options`` are those of :func:`hyenarec_kernels.integrations.replace_attention`;
    with a ``horizon`` of ``session_max_len`` they see whole sessions.
    """

    def __init__(
        self, n_blocks: int, n_factors: int, n_heads: int, dropout_rate: float, *, horizon: int, **options: Any
    ) -> None:
        super().__init__(n_blocks, n_factors, n_heads, dropout_rate)
        replace_attention(self, horizon, query_only=True, **options)

    def forward(self, seqs: Tensor, timeline_mask: Tensor, attn_mask: Tensor | None, *_: Any, **__: Any) -> Tensor:
        mixed: Tensor = super().forward(seqs, timeline_mask, *_masks(timeline_mask, attn_mask))
        return mixed


class HyenaPreLNLayers(PreLNTransformerLayers):
    """Pre-norm blocks, as in BERT4Rec, with HyenaMixer; arguments as for :class:`HyenaSASRecLayers`."""

    def __init__(
        self, n_blocks: int, n_factors: int, n_heads: int, dropout_rate: float, *, horizon: int, **options: Any
    ) -> None:
        super().__init__(n_blocks, n_factors, n_heads, dropout_rate)
        replace_attention(self, horizon, **options)

    def forward(self, seqs: Tensor, timeline_mask: Tensor, attn_mask: Tensor | None, *_: Any, **__: Any) -> Tensor:
        mixed: Tensor = super().forward(seqs, timeline_mask, *_masks(timeline_mask, attn_mask))
        return mixed


def _masks(timeline_mask: Tensor, attn_mask: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """The causal mask (L, L), if RecTools attends causally, and the padding mask (B, L), True at padding. RecTools by
    default passes no padding mask, and it may merge both into one mask per head, so they are made anew here:
    ``timeline_mask`` (B, L, 1) always says where events are."""
    if attn_mask is not None:
        length = timeline_mask.shape[1]
        attn_mask = torch.ones(length, length, dtype=torch.bool, device=timeline_mask.device).triu(1)
    return attn_mask, ~timeline_mask.squeeze(-1)
