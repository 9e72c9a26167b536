"""Softmax attention to the last few events, with time and memory linear in the length of the history."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from hyenarec.config import ModelConfig
from hyenarec.mixers.base import TensorState
from hyenarec.packing import Packing
from hyenarec_kernels.nn import fast_linear
from hyenarec_kernels.segments import last_rows


class RecentAttention(nn.Module):
    """Softmax attention of every event to the last ``window`` events of its sequence, itself among them.

    The packed events are cut into blocks of ``window``, wherever sequences begin. Each block attends to itself and the
    block before, and a mask keeps sequences apart. With ``lags`` each head adds a learned bias for each lag to its
    scores, for models without positions. ``days`` is accepted and ignored.
    """

    def __init__(self, config: ModelConfig, window: int, *, lags: bool = False) -> None:
        super().__init__()
        self.heads, self.window = config.attention.heads, window
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)
        self.lags = nn.Parameter(torch.zeros(self.heads, window)) if lags else None  # (H, W), lag 0 first

    def forward(self, x: Tensor, packing: Packing, days: Tensor | None = None) -> Tensor:
        events, width = x.shape[0], self.window
        spare = -events % width
        if torch.compiler.is_compiling():
            spare = spare + width  # at least two blocks: torch would take a size of 1 for a constant
        qkv = pad(fast_linear(self.qkv, x), (0, 0, 0, spare)).view(-1, width, 3, self.heads, x.shape[1] // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (N, H, W, D/H) each
        k, v = (torch.cat((pad(y, (0, 0, 0, 0, 0, 0, 1, 0))[:-1], y), 2) for y in (k, v))  # (N, H, 2W, D/H)
        event = torch.arange(events + spare, device=x.device).view(-1, width, 1)  # (N, W, 1)
        key = event[:, :1] + torch.arange(-width, width, device=x.device)  # (N, 1, 2W)
        first = pad(torch.arange(events, device=x.device) - packing.positions, (0, spare)).view(-1, width, 1)
        seen = (key <= event) & (key > event - width) & (key >= first)
        lag = event[0] - key[0]  # (W, 2W)
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=self._mask(seen[:, None], lag, q))  # (N, H, W, D/H)
        return fast_linear(self.out, mixed.transpose(1, 2).flatten(0, 1).flatten(1)[:events])

    def last(self, x: Tensor, packing: Packing) -> Tensor:
        """The output at the last event of each sequence only, (S, D)."""
        near = last_rows(x, packing.cu_seqlens[:-1], packing.lengths, self.window)  # (S, W, D)
        qkv = fast_linear(self.qkv, near)
        return self._newest(qkv[:, -1, : x.shape[1]], qkv[..., x.shape[1] :], packing.lengths)

    def init_state(self, sequences: int) -> TensorState:
        """Keys and values of the last ``window`` events, the newest last; zeros at first."""
        return TensorState(window=self.out.weight.new_zeros(sequences, self.window, 2 * self.out.in_features))

    def prefill(self, x: Tensor, packing: Packing, days: Tensor | None = None) -> tuple[Tensor, TensorState]:
        keys_values = fast_linear(self.qkv, x)[:, x.shape[1] :]  # (T, 2D)
        window = last_rows(keys_values, packing.cu_seqlens[:-1], packing.lengths, self.window)
        return self(x, packing), TensorState(window=window)

    def step(self, x: Tensor, state: TensorState, days: Tensor | None = None) -> tuple[Tensor, TensorState]:
        """The next event of every sequence. ``state`` needs ``events`` (S,) too, the number of events read so far."""
        q, new = fast_linear(self.qkv, x).split((x.shape[1], 2 * x.shape[1]), -1)  # type: ignore[no-untyped-call]
        window = torch.cat((state["window"][:, 1:], new[:, None].to(state["window"].dtype)), 1)  # (S, W, 2D)
        return self._newest(q, window.to(q.dtype), state["events"] + 1), TensorState(window=window)

    def _newest(self, q: Tensor, window: Tensor, events: Tensor) -> Tensor:
        """The output (S, D) at the newest of ``events`` (S,) events of each sequence, from its query ``q`` (S, D) and
        the keys and values (S, W, 2D) of the last events, itself included."""
        k, v = window.view(q.shape[0], self.window, 2, self.heads, -1).permute(2, 0, 3, 1, 4)  # (S, H, W, D/H) each
        lag = torch.arange(self.window - 1, -1, -1, device=q.device)  # (W,)
        q = q.view(q.shape[0], self.heads, 1, -1)
        mask = self._mask((lag < events[:, None])[:, None, None], lag[None], q)  # (S, 1 or H, 1, W)
        return fast_linear(self.out, scaled_dot_product_attention(q, k, v, attn_mask=mask).flatten(1))

    def _mask(self, seen: Tensor, lag: Tensor, q: Tensor) -> Tensor:
        """The attention mask, from ``seen`` (N, 1, ...) and ``lag`` (...): ``seen`` itself, or with learned lags what
        is added to the scores, in the dtype of ``q``."""
        if self.lags is None:
            return seen
        added: Tensor = self.lags[:, lag.clamp(0, self.window - 1)]  # (H, ...)
        return torch.where(seen, added.to(q.dtype), float("-inf"))
