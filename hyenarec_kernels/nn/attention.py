"""A mixer behind the signature of ``nn.MultiheadAttention``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hyenarec_kernels.nn.masks import key_mask
from hyenarec_kernels.nn.mixer import HyenaMixer


class HyenaSelfAttention(nn.Module):
    """Stands where ``nn.MultiheadAttention`` stood as self-attention, in ``nn.TransformerEncoderLayer`` too.

    Args:
        mixer: what mixes; its ``dim`` is the ``embed_dim``.
        batch_first: whether inputs are (B, L, D); otherwise, as in torch by default, (L, B, D).
    """

    # What torch's encoder layers read before they take a fast path of their own, around the module that they hold.
    in_proj_bias = None
    _qkv_same_embed_dim = True
    num_heads = 1

    def __init__(self, mixer: HyenaMixer, *, batch_first: bool = False) -> None:
        super().__init__()
        self.mixer, self.embed_dim, self.batch_first = mixer, mixer.dim, batch_first

    def reset_parameters(self) -> None:
        """Gives the mixer new initial values."""
        self.mixer.reset_parameters()

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Mixes ``query``, which must be ``key`` and ``value`` too; ``(output, None)``, the output 0 in padding.

        Args:
            query, key, value: one tensor, (B, L, D) with ``batch_first``, else (L, B, D).
            key_padding_mask: (B, L), as :func:`hyenarec_kernels.nn.key_mask` takes it: True is padding.
            need_weights: must be False, for there are none.
            attn_mask: (L, L), which must be the causal one for a causal mixer, and None for a bidirectional one.
            average_attn_weights: ignored.
            is_causal: says so of ``attn_mask``, which then is not looked at.

        Raises:
            NotImplementedError: cross-attention, weights, or a mask that the mixer does not honour.
        """
        if query is not key or key is not value:
            raise NotImplementedError(
                "HyenaSelfAttention: query, key and value must be one tensor: it mixes a sequence"
            )
        if need_weights:
            raise NotImplementedError("HyenaSelfAttention: there are no attention weights; pass need_weights=False")
        if self.mixer.bidirectional and (is_causal or attn_mask is not None):
            raise NotImplementedError(
                "HyenaSelfAttention: a bidirectional mixer sees both sides and takes no attn_mask"
            )
        if attn_mask is not None and not is_causal and not _causal(attn_mask):
            raise NotImplementedError("HyenaSelfAttention: attn_mask must be causal, as the mixer is")
        x = query if self.batch_first else query.transpose(0, 1)
        mask = None if key_padding_mask is None else key_mask(key_padding_mask=key_padding_mask)
        y: Tensor = self.mixer(x, mask=mask)
        return (y if self.batch_first else y.transpose(0, 1)), None


def _causal(mask: Tensor) -> bool:
    """Whether an ``attn_mask`` of torch's, (L, L), hides exactly what comes later. Waits for an accelerator."""
    if mask.dim() != 2 or mask.shape[0] != mask.shape[1]:
        return False
    hidden = mask != 0  # True, or -inf to be added
    return bool(hidden.equal(torch.ones_like(hidden).triu(1)))
