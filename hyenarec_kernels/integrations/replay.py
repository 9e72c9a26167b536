"""RePlay: an encoder for ``replay.nn.sequential.SasRec`` with HyenaMixer in place of attention.

    model = hyena_sasrec(schema, embedding_dim=64, num_blocks=2, max_sequence_length=200, dropout=0.2)

Training, postprocessors and callbacks stay RePlay's.
"""

from __future__ import annotations

from typing import Any

import torch
from replay.nn.sequential import SasRec
from replay.nn.sequential.sasrec.transformer import SasRecTransformerLayer
from torch import Tensor

from hyenarec_kernels.integrations.swap import replace_attention


class HyenaEncoder(SasRecTransformerLayer):
    """SasRec's encoder with HyenaMixer. ``horizon`` and ``options`` are those of
    :func:`hyenarec_kernels.integrations.replace_attention`, the other arguments those of ``SasRecTransformerLayer``."""

    def __init__(
        self,
        embedding_dim: int,
        num_blocks: int,
        dropout: float,
        horizon: int,
        activation: str = "gelu",
        hidden_dim: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(embedding_dim, 1, num_blocks, dropout, activation, hidden_dim)
        replace_attention(self, horizon, query_only=True, **options)

    def forward(
        self, feature_tensors: Any, input_embeddings: Tensor, padding_mask: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Mixes (B, L, D) causally; ``padding_mask`` (B, L) is True at events, and ``attention_mask`` is not read."""
        x = input_embeddings
        blocks = zip(
            self.attention_layernorms, self.attention_layers, self.forward_layernorms, self.forward_layers, strict=True
        )
        for norm, attention, forward_norm, feed_forward in blocks:
            query = norm(x)
            mixed, _ = attention(query, query, query, key_padding_mask=~padding_mask, is_causal=True)
            x = feed_forward(forward_norm(query + mixed))
        return x


class NoMask(torch.nn.Module):
    """Replaces RePlay's builder of attention masks, which makes one of (B * heads, L, L) for every batch."""

    def forward(self, feature_tensors: Any, padding_mask: Tensor) -> None:
        return None


def hyena_sasrec(
    schema: Any,
    *,
    embedding_dim: int,
    num_blocks: int,
    max_sequence_length: int,
    dropout: float,
    hidden_dim: int | None = None,
    horizon: int | None = None,
    **options: Any,
) -> SasRec:
    """``SasRec.from_params`` with a :class:`HyenaEncoder`, whose filters reach back ``horizon`` events, by default
    ``max_sequence_length``. ``options`` are those of the encoder."""
    model = SasRec.from_params(
        schema, embedding_dim, 1, num_blocks, max_sequence_length, dropout, hidden_dim=hidden_dim
    )
    model.body.encoder = HyenaEncoder(
        embedding_dim, num_blocks, dropout, horizon or max_sequence_length, "relu", hidden_dim, **options
    )
    model.body.attn_mask_builder = NoMask()
    model.reset_parameters()  # as its constructor does
    return model
