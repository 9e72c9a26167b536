"""SASRec's mixer: causal softmax attention (arXiv 1808.09781)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from hyenarec.config import ModelConfig
from hyenarec.mixers.base import Mixer
from hyenarec.packing import Packing


class AttentionMixer(Mixer):
    """Multi-head attention through ``scaled_dot_product_attention``.

    Sequences are right-padded into a rectangle, so the causal rule alone keeps the padding out of every real row.
    """

    needs_positions = True

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.heads = config.attention.heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)

    def forward(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, last_only: bool = False
    ) -> Tensor:
        qkv = packing.pad(self.qkv(x)).view(
            packing.sequences, packing.max_length, 3, self.heads, -1
        )  # (S, M, 3, H, D/H)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (S, H, M, D/H) each
        if self.causal and not last_only:
            mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.out(packing.unpad(mixed.transpose(1, 2).flatten(2)))  # type: ignore[no-any-return]
        lengths = packing.lengths[:, None, None, None]  # (S, 1, 1, 1)
        real = torch.arange(packing.max_length, device=x.device) < lengths  # (S, 1, 1, M)
        if last_only:
            q = q.take_along_dim(lengths - 1, dim=2)  # (S, H, 1, D/H)
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=real).transpose(1, 2).flatten(2)  # (S, M or 1, D)
        return self.out(mixed.squeeze(1) if last_only else packing.unpad(mixed))  # type: ignore[no-any-return]
