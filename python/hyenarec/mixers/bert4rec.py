"""BERT4Rec's mixer: bidirectional softmax attention (arXiv 1904.06690).

The paper's stack of Transformer blocks is the backbone's, pre-norm as all mixers here have it (the paper's is
post-norm); its masked-item training is :mod:`hyenarec.cloze`.
"""

from __future__ import annotations

from hyenarec.mixers.attention import AttentionMixer


class Bert4RecMixer(AttentionMixer):
    """SASRec's attention without the causal rule."""

    causal = False
