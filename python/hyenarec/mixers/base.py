"""What the backbone asks of a mixer."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from hyenarec.config import ModelConfig
from hyenarec.packing import Packing


class Mixer(nn.Module):
    """Token mixing over packed sequences: row ``t`` of the output depends on its own sequence up to ``t`` only.

    A class with ``needs_positions`` has learned positions added to the item embeddings. One that is not ``causal`` sees
    its whole sequence, so its model learns to fill in masked items (:mod:`hyenarec.cloze`) instead of predicting next
    ones. One that ``knows_time`` uses timestamps, and positions in their stead where there are none. Weight decay
    spares the mixer that is not ``decayed``. ``layer`` is the 0-based block that the mixer serves, for those whose
    blocks differ.
    """

    needs_positions: ClassVar[bool] = False
    causal: ClassVar[bool] = True
    knows_time: ClassVar[bool] = False
    decayed: ClassVar[bool] = True

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

    def mix_padded(self, x: Tensor, mask: Tensor, *, timestamps: Tensor | None = None) -> Tensor:
        """``x`` (B, L, D), padded on either side with anything, to (B, L, D), 0 in padding.

        ``mask`` (B, L) bool, True for real events, at least one a row; ``timestamps`` (B, L) int64.
        """
        packing = Packing.from_lengths(mask.sum(1).cpu()).to(x.device)
        mixed: Tensor = self(x[mask], packing, timestamps=None if timestamps is None else timestamps[mask])  # (T, D)
        out = mixed.new_zeros(x.shape)
        out[mask] = mixed
        return out
