"""BERT4Rec's mixer: bidirectional softmax attention (arXiv 1904.06690).

The Transformer blocks around it are the backbone's: pre-norm, as for all mixers here (the paper's are post-norm).
:mod:`hyenarec.cloze` has the masked-item training.
"""

from __future__ import annotations

from hyenarec.mixers.attention import AttentionMixer


class Bert4RecMixer(AttentionMixer):
    """SASRec's attention without the causal mask."""

    causal = False
