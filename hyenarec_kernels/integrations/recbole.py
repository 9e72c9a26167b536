"""RecBole: SASRec with HyenaMixer in place of attention, as a model class for ``Config`` and the trainer.

    config = Config(model=HyenaSASRec, dataset="ml-100k", config_file_list=[SASREC_SETTINGS])

Its settings are those of SASRec, and ``horizon``: how many events back the filters reach, MAX_ITEM_LIST_LENGTH by
default.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import recbole
from recbole.model.layers import MultiHeadAttention
from recbole.model.sequential_recommender.sasrec import SASRec
from torch import Tensor, nn

from hyenarec_kernels.integrations.swap import replace_attention
from hyenarec_kernels.nn import HyenaMixer, key_mask

SASREC_SETTINGS = str(Path(recbole.__file__).parent / "properties/model/SASRec.yaml")  # found only by the name SASRec


class HyenaSublayer(nn.Module):
    """Replaces RecBole's ``MultiHeadAttention``. Like that, it also adds the residual and normalises."""

    def __init__(self, attention: MultiHeadAttention, horizon: int, **options: Any) -> None:
        super().__init__()
        self.mixer = HyenaMixer(attention.dense.out_features, horizon, **options)
        self.out_dropout, self.LayerNorm = attention.out_dropout, attention.LayerNorm

    def forward(self, input_tensor: Tensor, attention_mask: Tensor) -> Tensor:
        """Mixes (B, L, D). The mask is the one that RecBole adds to scores, (B, 1, L, L) if attention is causal and
        (B, 1, 1, L) if not, or (B, L), True at events.

        Raises:
            ValueError: the mask is causal and the mixer is bidirectional, or the other way round.
        """
        if attention_mask.dim() == 4 and (attention_mask.shape[2] == 1) != self.mixer.bidirectional:
            kind = "causal, construct it without" if self.mixer.bidirectional else "not causal, construct it with"
            raise ValueError(f"HyenaSublayer: this model's attention is {kind} bidirectional=True")
        mixed = self.mixer(input_tensor, mask=key_mask(attention_mask))
        normalised: Tensor = self.LayerNorm(self.out_dropout(mixed) + input_tensor)
        return normalised


class HyenaSASRec(SASRec):
    """RecBole's SASRec with :class:`HyenaSublayer`."""

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        replace_attention(self, config["horizon"] or self.max_seq_length, {MultiHeadAttention: HyenaSublayer})

    def get_attention_mask(self, item_seq: Tensor, bidirectional: bool = False) -> Tensor:
        """The mask (B, L), True at events; RecBole's own masks are (B, 1, L, L)."""
        return item_seq != 0
