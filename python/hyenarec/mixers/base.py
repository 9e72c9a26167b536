"""What the backbone asks of a mixer."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from hyenarec.config import ModelConfig
from hyenarec.packing import Packing


class Mixer(nn.Module):
    """Token mixing over packed sequences: row ``t`` of the output depends on its own sequence up to ``t`` only.

    Attributes:
        needs_positions: the model adds learned positions to the item embeddings.
        causal: False for a mixer that sees its whole sequence. Its model cannot learn to predict the next item, so it
            learns to fill in masked items (:mod:`hyenarec.cloze`).
        knows_time: the mixer uses timestamps. Where a log has none, positions take their place.

    ``layer`` is the 0-based number of the block that the mixer serves, for mixers whose blocks differ.
    """

    needs_positions: ClassVar[bool] = False
    causal: ClassVar[bool] = True
    knows_time: ClassVar[bool] = False

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()

    def forward(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, last_only: bool = False
    ) -> Tensor:
        """``x`` (T, D), packed, to (T, D); with ``last_only`` to (S, D), the last event of each sequence.

        ``timestamps`` (T,) int64 for mixers that know time; the others take and ignore it, so that all share this
        signature.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward")
