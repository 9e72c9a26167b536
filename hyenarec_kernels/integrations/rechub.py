"""torch-rechub: a layer for ``HSTUModel`` with HyenaMixer in place of ``HSTULayer``.

    replace_attention(model, horizon=200, makers={HSTULayer: HyenaHSTULayer})

Times still enter through the model's time embedding; the layers do not read them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch_rechub.basic.layers import HSTULayer

from hyenarec_kernels.nn import HyenaMixer


class HyenaHSTULayer(nn.Module):
    """Replaces ``layer``; ``HSTUBlock`` adds the residual."""

    def __init__(self, layer: HSTULayer, horizon: int, **options: Any) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(layer.d_model)
        self.mixer = HyenaMixer(layer.d_model, horizon, **options)
        self.dropout = nn.Dropout(layer.dropout.p)

    def forward(self, x: Tensor, padding_mask: Tensor | None = None, time_diffs: Tensor | None = None) -> Tensor:
        """Mixes (B, L, D); ``padding_mask`` (B, L) is True at events, ``time_diffs`` is not read."""
        mixed: Tensor = self.dropout(self.mixer(self.norm_in(x), mask=padding_mask))
        return mixed
