"""SASRec's mixer: causal softmax attention (arXiv 1808.09781)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from hyenarec.config import ModelConfig
from hyenarec.mixers.base import Mixer, TensorState, most
from hyenarec.mixers.caches import make_cache
from hyenarec.packing import Packing
from hyenarec_kernels.nn import fast_linear


@cache
def varlen() -> tuple[Callable[..., Tensor], dict[str, Any]] | None:
    """torch's flash attention for packed sequences and the keyword argument that makes it causal; None if this torch
    has no such function.

    It is imported only when a machine with a GPU makes its first mixer, because the import also brings in TorchDynamo,
    which is as much again as torch itself.
    """
    try:
        attend = import_module("torch.nn.attention.varlen").varlen_attn
    except ImportError:
        return None
    # In torch 2.10 the argument is is_causal; later versions take how far attention reaches to the left and right.
    named = "window_size" not in signature(attend).parameters
    return attend, {"is_causal": True} if named else {"window_size": (-1, 0)}


def takes_packed(qkv: Tensor) -> bool:
    """Whether torch's flash attention accepts packed ``qkv`` (T, 3, H, D/H), without padding it to a rectangle."""
    return qkv.is_cuda and qkv.dtype == torch.bfloat16 and qkv.shape[-1] % 8 == 0


class AttentionMixer(Mixer):
    """Multi-head attention through torch's fused kernels: ``varlen_attn`` on packed sequences in bfloat16 on a GPU,
    ``scaled_dot_product_attention`` elsewhere.

    The latter needs a right-padded rectangle, where the causal mask alone keeps padding from affecting real rows.
    """

    needs_positions = True
    rectangular = True

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.heads = config.attention.heads
        self.cache = make_cache(config.attention, config.max_length)
        self.varlen = varlen() if torch.cuda.is_available() else None
        # With a second embedding, queries and keys are made from it alone, and values from the first embedding.
        self.small = config.small_dim
        self.qkv = nn.Linear(config.dim, config.dim if self.small else 3 * config.dim)
        self.query_key = nn.Linear(self.small, 2 * config.dim) if self.small else None
        self.out = nn.Linear(config.dim, config.dim)

    def forward(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, last_only: bool = False
    ) -> Tensor:
        qkv = self._project(x)  # (T, 3, H, D/H)
        if self.varlen is not None and takes_packed(qkv) and not last_only:
            attend, causal_rule = self.varlen
            bounds, rule = packing.cu_seqlens.to(torch.int32), causal_rule if self.causal else {}
            longest = packing.max_length
            mixed = attend(*qkv.unbind(1), bounds, bounds, longest, longest, **rule)  # (T, H, D/H)
            return fast_linear(self.out, mixed.flatten(1))
        q, k, v = packing.pad(qkv).permute(2, 0, 3, 1, 4)  # (S, H, M, D/H) each
        if self.causal and not last_only:
            mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
            return fast_linear(self.out, packing.unpad(mixed.transpose(1, 2).flatten(2)))
        lengths = packing.lengths[:, None, None, None]  # (S, 1, 1, 1)
        real = torch.arange(packing.max_length, device=x.device) < lengths  # (S, 1, 1, M)
        if last_only:
            rows = torch.arange(packing.sequences, device=x.device)
            # take_along_dim does not support symbolic sizes.
            q = q[rows, :, packing.lengths - 1][:, :, None]  # (S, H, 1, D/H)
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=real).transpose(1, 2).flatten(2)  # (S, M or 1, D)
        return fast_linear(self.out, mixed.squeeze(1) if last_only else packing.unpad(mixed))

    def _project(self, x: Tensor) -> Tensor:
        """Queries, keys and values, (T, 3, H, D/H)."""
        if self.query_key is None:
            qkv = fast_linear(self.qkv, x)
        else:
            values, small = x[:, : -self.small], x[:, -self.small :]
            qkv = torch.cat((fast_linear(self.query_key, small), fast_linear(self.qkv, values)), -1)
        return qkv.view(x.shape[0], 3, self.heads, -1)

    def init_state(self, sequences: int, *, compact: bool = False) -> TensorState:
        """The key-value cache."""
        return self.cache.init_state(sequences, self.out.weight, self.heads)

    def prefill(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, compact: bool = False
    ) -> tuple[Tensor, TensorState]:
        state = self.init_state(packing.sequences)
        qkv = self._project(x)  # (T, 3, H, D/H)
        self.cache.fill(state, packing.pad(qkv), packing)
        return self(x, packing), state

    def step(self, x: Tensor, state: TensorState, *, timestamps: Tensor | None = None) -> tuple[Tensor, TensorState]:
        qkv = self._project(x)  # (S, 3, H, D/H)
        state, held = self.cache.add(state, qkv)
        longest = most(held, self.cache.room)
        keys, values = state["cache"][:, :longest].to(qkv.dtype).permute(2, 0, 3, 1, 4)  # (S, H, M, D/H) each
        seen = torch.arange(longest, device=x.device) < held[:, None, None, None]  # (S, 1, 1, M)
        mixed = scaled_dot_product_attention(qkv[:, 0, :, None], keys, values, attn_mask=seen)  # (S, H, 1, D/H)
        return fast_linear(self.out, mixed.flatten(1)), state
