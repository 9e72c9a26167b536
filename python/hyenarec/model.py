"""The backbone that all recommenders share; they differ in the mixer alone."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, gelu

from hyenarec.cloze import hide_next
from hyenarec.config import ModelConfig
from hyenarec.data.batches import Batch
from hyenarec.errors import UserError
from hyenarec.mixers import MIXERS
from hyenarec_kernels.nn import fast_linear
from hyenarec_kernels.ops import dropout as kernels


class Dropout(nn.Module):
    """Dropout of values, or of their GELU, whose probability is rounded to 1/256.

    On a CPU by :func:`hyenarec_kernels.ops.dropout.dropout`, which keeps no mask: torch's own draws a number an element
    on one thread. On a GPU by torch's.
    """

    def __init__(self, probability: float, activation: Literal["gelu"] | None = None) -> None:
        super().__init__()
        self.probability, self.activation = round(256 * probability) / 256, activation

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.probability:
            return gelu(x) if self.activation else x
        if x.device.type == "cpu":
            seed = torch.randint(-(2**63), 2**63 - 1, (1,))
            return kernels.dropout(x, self.probability, seed, activation=self.activation)
        return dropout(gelu(x) if self.activation else x, self.probability)


class FeedForward(nn.Sequential):
    """Two linear layers with an activation between them."""

    def forward(self, x: Tensor) -> Tensor:
        up, activation, down = self
        return fast_linear(down, activation(fast_linear(up, x)))


class Block(nn.Module):
    """Pre-norm residual mixer, then pre-norm residual feed-forward (GELU, 4x)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.mixer_norm = nn.LayerNorm(config.dim)
        self.mixer = MIXERS[config.mixer](config, layer)
        self.ffn_norm = nn.LayerNorm(config.dim)
        self.ffn = FeedForward(
            nn.Linear(config.dim, 4 * config.dim),
            Dropout(config.dropout, activation="gelu"),
            nn.Linear(4 * config.dim, config.dim),
        )
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, batch: Batch, last_only: bool) -> Tensor:
        mixed = self.mixer(self.mixer_norm(x), batch.packing, timestamps=batch.timestamps, last_only=last_only)
        if last_only:
            x = x[batch.packing.last]  # (S, D)
        x = x + self.dropout(mixed)
        return x + self.dropout(self.ffn(self.ffn_norm(x)))  # type: ignore[no-any-return]


class SequenceModel(nn.Module):
    """Item embedding -> dropout -> blocks -> norm; scores are ``h E^T + bias`` with the embedding tied.

    ``forward(batch)`` returns the hidden states (T, D), or (S, D) of each sequence's last event with ``last_only``;
    :meth:`scores` turns them into scores over the catalogue, (S, V). A model whose mixer is not causal has a ``mask``
    that stands for the batch's masked items, and is asked for the next item by a masked one after the history.
    """

    def __init__(self, config: ModelConfig, n_items: int) -> None:
        super().__init__()
        if config.mixer not in MIXERS:
            raise UserError(f"option mixer: {config.mixer!r} is none of {', '.join(MIXERS)}")
        self.config = config
        self.items = nn.Embedding(n_items, config.dim)
        nn.init.normal_(self.items.weight, std=config.dim**-0.5)
        self.bias = nn.Parameter(torch.zeros(n_items))
        mixer = MIXERS[config.mixer]
        self.mask = None if mixer.causal else nn.Parameter(torch.randn(config.dim))
        length = config.max_length if mixer.causal else config.max_length + 1  # the history and the masked item
        self.positions = nn.Embedding(length, config.dim) if mixer.needs_positions else None
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=config.dim**-0.5)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.blocks))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, batch: Batch, *, last_only: bool = False) -> Tensor:
        x = self.items(batch.items) * self.config.dim**0.5  # (T, D), of unit variance as the mixers' outputs are
        if batch.masked is not None:
            assert self.mask is not None
            x = x.index_copy(0, batch.masked, self.mask.expand(len(batch.masked), -1))
        if self.positions is not None:
            x = x + self.positions(batch.packing.positions)
        x = self.dropout(x)
        for index, block in enumerate(self.blocks):
            x = block(x, batch, last_only and index == len(self.blocks) - 1)
        return self.norm(x)  # type: ignore[no-any-return]

    def scores(self, batch: Batch) -> Tensor:
        """Scores of every item as the next one after each sequence, (S, V) float32."""
        hidden = self(batch if self.mask is None else hide_next(batch), last_only=True)  # (S, D)
        with torch.autocast(hidden.device.type, enabled=False):  # half precision would tie scores that differ
            return torch.addmm(self.bias, hidden.to(self.bias.dtype), self.items.weight.T)
