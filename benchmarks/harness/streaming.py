"""Models that remember their users: one more event costs a step of each block's state, and no look at the history."""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from torch import Tensor

from hyenarec.data.batches import Batch
from hyenarec.mixers.gru import GRUMixer
from hyenarec.mixers.hyena import HyenaMixer
from hyenarec.model import Block, SequenceModel
from hyenarec.packing import Packing


class MixerStream(Protocol):
    """A mixer's state after the histories ``x`` (T, D), packed, and its outputs there, ``y`` (T, D)."""

    y: Tensor

    def __init__(self, mixer: Any, x: Tensor, packing: Packing) -> None: ...

    def step(self, x: Tensor) -> Tensor:
        """The next event of every history, (S, D) to (S, D)."""
        ...


class HyenaStream:
    def __init__(self, mixer: HyenaMixer, x: Tensor, packing: Packing) -> None:
        self.operator = mixer.operator
        self.y, self.state = self.operator.prefill(x, cu_seqlens=packing.cu_seqlens)

    def step(self, x: Tensor) -> Tensor:
        y, self.state = self.operator.step(x, self.state)
        return y


class GRUStream:
    def __init__(self, mixer: GRUMixer, x: Tensor, packing: Packing) -> None:
        self.gru = mixer.gru
        self.y = mixer(x, packing)
        self.state = self.y[packing.last][None]  # (1, S, D): a GRU's state is its output

    def step(self, x: Tensor) -> Tensor:
        y, self.state = self.gru(x[:, None], self.state)
        return y[:, 0]  # type: ignore[no-any-return]


# Attention would keep every key and value, and its learned positions move with each event past the window.
STREAMS: dict[str, type[MixerStream]] = {"hyena": HyenaStream, "gru": GRUStream}


class Stream:
    """A model in evaluation mode after the histories of a batch."""

    @torch.inference_mode()
    def __init__(self, model: SequenceModel, batch: Batch) -> None:
        self.model = model
        self.mixers = []
        x = model.items(batch.items) * model.config.dim**0.5
        for block in self.blocks():
            mixer = STREAMS[model.config.mixer](block.mixer, block.mixer_norm(x), batch.packing)
            self.mixers.append(mixer)
            x = x + mixer.y
            x = x + block.ffn(block.ffn_norm(x))

    @torch.inference_mode()
    def step(self, items: Tensor) -> Tensor:
        """The next item of every history, (S,), to the hidden states after it, (S, D)."""
        x = self.model.items(items) * self.model.config.dim**0.5
        for block, mixer in zip(self.blocks(), self.mixers, strict=True):
            x = x + mixer.step(block.mixer_norm(x))
            x = x + block.ffn(block.ffn_norm(x))
        return self.model.norm(x)  # type: ignore[no-any-return]

    def blocks(self) -> list[Block]:
        return cast(list[Block], list(self.model.blocks))
