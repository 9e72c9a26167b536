"""What the backbone asks of a mixer."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from hyenarec.config import ModelConfig
from hyenarec.packing import Packing


class Mixer(nn.Module):
    """Causal token mixing over packed sequences: row ``t`` of the output depends on its own sequence up to ``t`` only.

    A class that sets ``needs_positions`` has learned positions added to the item embeddings.
    """

    needs_positions: ClassVar[bool] = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()

    def forward(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, last_only: bool = False
    ) -> Tensor:
        """``x`` (T, D), packed, to (T, D); with ``last_only`` to (S, D), the last event of each sequence.

        ``timestamps`` (T,) int64 for mixers that know time; the others take and ignore it, so that all share this
        signature.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward")
