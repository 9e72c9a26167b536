"""DMAN's mixer: recurrent attention over segments, beside memory slots (arXiv 2102.09174).

    H~_t = attention of x_t to its own segment up to t and to the whole segment before
    H^_t = attention of x_t to the memory slots M_n of its segment n
    y_t = W_o (G H~_t + (1 - G) H^_t),    G = sigmoid(W_1 H~_t + W_2 H^_t)
    M_{n+1} = abstract(M_n, the segment before n)

The memory thus holds what is too old for the attention to segments. As in the paper, the abstraction learns only from a
loss of its own: the squared distance between what the events of an abstracted segment read from [M_n, segment] and what
they read from M_{n+1}.

The above follows the paper's abstract and figure; the equations are ours. Also ours: the abstraction, in which each
slot has a learned query and averages [M_n, segment] by its attention to them, so that slots are averages of inputs and
are read with the attention's own keys and values; that no gradient flows from one memory to the next; learned slots
until something has been abstracted; the length of segments; causal attention inside a segment and memory from finished
segments only, so that all positions can be trained at once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import linear, mse_loss, scaled_dot_product_attention

from hyenarec.config import ModelConfig
from hyenarec.mixers.auxiliary import with_loss
from hyenarec.mixers.base import Mixer, TensorState, any_true
from hyenarec.mixers.blocks import block_size, by_block, by_heads, lags, with_before
from hyenarec.packing import Packing
from hyenarec_kernels.nn import fast_linear

SLOTS = 16


class DMANMixer(Mixer):
    """Cuts each sequence into segments from its start, and computes their memories one after another."""

    needs_positions = True

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        dim = config.dim
        self.heads, self.segment = config.attention.heads, block_size(config.max_length)
        self.query, self.key_value = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.gate = nn.Linear(2 * dim, dim)
        self.slots = nn.Parameter(torch.randn(SLOTS, dim))  # the memory before anything is abstracted
        self.slot_queries = nn.Parameter(torch.randn(SLOTS, dim) * dim**-0.5)
        self.slot_key = nn.Linear(dim, dim, bias=False)

    def forward(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, last_only: bool = False
    ) -> Tensor:
        mixed = self._mix(x, packing)[0]
        return mixed[packing.last] if last_only else mixed

    def init_state(self, sequences: int, *, compact: bool = False) -> TensorState:
        """The memory, the inputs of the previous and of the current segment, and the number of events read."""
        return TensorState(
            memory=self.slots.detach().repeat(sequences, 1, 1),
            recent=self.slots.new_zeros(sequences, 2 * self.segment, self.slots.shape[1]),
            events=torch.zeros(sequences, dtype=torch.int64, device=self.slots.device),
        )

    def prefill(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, compact: bool = False
    ) -> tuple[Tensor, TensorState]:
        mixed, memories, segments = self._mix(x, packing)
        begun = packing.lengths // self.segment  # index of the current segment, (S,)
        row = torch.arange(packing.sequences, device=x.device)
        padded = torch.cat((segments, torch.zeros_like(segments[:, :1])), 1)  # room for an empty current segment
        recent = with_before(padded, 1)[row, begun]
        filled = (
            torch.arange(2 * self.segment, device=x.device) < self.segment + (packing.lengths % self.segment)[:, None]
        )
        state = TensorState(memory=memories[row, begun], recent=recent * filled[..., None], events=packing.lengths)
        return mixed, state

    def step(self, x: Tensor, state: TensorState, *, timestamps: Tensor | None = None) -> tuple[Tensor, TensorState]:
        memory, recent, events = state["memory"], state["recent"], state["events"]
        place = self.segment + events % self.segment  # (S,)
        recent[torch.arange(x.shape[0], device=x.device), place] = x.to(recent.dtype)
        key = torch.arange(2 * self.segment, device=x.device)
        seen = (key <= place[:, None]) & ((key >= self.segment) | (events >= self.segment)[:, None])  # (S, 2C)
        q = fast_linear(self.query, x)[:, None]  # (S, 1, D)
        short = self._attend(q, fast_linear(self.key_value, recent.to(x.dtype)), seen[:, None, None])
        long = self._attend(q, fast_linear(self.key_value, memory.to(x.dtype)))
        mixed = self._gated(short, long)[:, 0]
        events = events + 1
        full = (events % self.segment == 0)[:, None, None]
        if any_true(full):  # the previous segment, if there is one, moves into the memory
            abstracted = self._abstract(memory, recent[:, : self.segment])
            memory = torch.where(full & (events > self.segment)[:, None, None], abstracted, memory)
            recent = torch.where(
                full, torch.cat((recent[:, self.segment :], torch.zeros_like(recent[:, : self.segment])), 1), recent
            )
        return mixed, TensorState(memory=memory, recent=recent, events=events)

    def _mix(self, x: Tensor, packing: Packing) -> tuple[Tensor, Tensor, Tensor]:
        """The output (T, D), the memory for each segment and for the one after the last (S, N + 1, SLOTS, D), and the
        segments' inputs (S, N, C, D)."""
        size = self.segment
        parts = (x, fast_linear(self.query, x), fast_linear(self.key_value, x))
        segments, q, keys_values = (by_block(packing.pad(part), size) for part in parts)  # (S, N, C, ·) each
        lag = lags(size, 1, x.device)  # (C, 2C)
        first = torch.arange(segments.shape[1], device=x.device)[:, None, None] * size  # (N, 1, 1)
        seen = (lag >= 0) & (first + torch.arange(-size, size, device=x.device) >= 0)  # (N, C, 2C)
        short = self._attend(q, with_before(keys_values, 1), seen[:, None])
        memories = self._memories(segments)
        long = self._attend(q, fast_linear(self.key_value, memories[:, :-1].to(x.dtype)))
        mixed = packing.unpad(self._gated(short, long).flatten(1, 2)[:, : packing.max_length])  # (T, D)
        finished = torch.arange(segments.shape[1], device=x.device) < (packing.lengths // size)[:, None]  # (S, N)
        if torch.is_grad_enabled() and segments.shape[1] > 1:
            mixed = with_loss(mixed, self._reconstruction(segments, memories, finished))
        return mixed, memories, segments

    def _memories(self, segments: Tensor) -> Tensor:
        """Segments (S, N, C, D) to memories (S, N + 1, SLOTS, D): memory n comes from the segments before n - 1."""
        first = self.slots.expand(segments.shape[0], -1, -1).to(segments.dtype)
        memories = [first, first]
        with torch.no_grad():
            for segment in segments[:, :-1].unbind(1):
                memories.append(self._abstract(memories[-1], segment))
        return torch.stack(memories, 1)

    def _abstract(self, memory: Tensor, segment: Tensor) -> Tensor:
        """The next memory, from ``memory`` (..., SLOTS, D) and the ``segment`` (..., C, D) that moves into it."""
        source = torch.cat((memory, segment.to(memory.dtype)), -2)
        scores = linear(self.slot_key(source), self.slot_queries).mT  # (..., SLOTS, SLOTS + C)
        return scores.softmax(-1).to(source.dtype) @ source

    def _reconstruction(self, segments: Tensor, memories: Tensor, finished: Tensor) -> Tensor:
        """The mean squared distance () between what finished segments read from their memory and themselves and what
        they read from the next memory."""
        before, segment = memories[:, 1:-1][finished[:, :-1]].detach(), segments[:, :-1][finished[:, :-1]].detach()
        if not len(before):
            return before.new_zeros(())

        def read(source: Tensor) -> Tensor:
            return self._attend(_frozen(self.query, segment), _frozen(self.key_value, source))

        after = self._abstract(before, segment)
        with torch.no_grad():
            want = read(torch.cat((before, segment), -2))
        return mse_loss(read(after), want)

    def _attend(self, q: Tensor, keys_values: Tensor, seen: Tensor | None = None) -> Tensor:
        """Attention of queries (..., C, D) to keys and values (..., K, 2D), to (..., C, D)."""
        q, k, v = by_heads(q, keys_values, self.heads)
        return scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(-3, -2).flatten(-2)

    def _gated(self, short: Tensor, long: Tensor) -> Tensor:
        gate = fast_linear(self.gate, torch.cat((short, long), -1)).sigmoid()
        return fast_linear(self.out, long + gate * (short - long))


def _frozen(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)`` without gradients for the layer's parameters."""
    weights = {name: weight.detach() for name, weight in layer.named_parameters()}
    return functional_call(layer, weights, (x,))  # type: ignore[no-any-return]
