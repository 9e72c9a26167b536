"""A replacement for ``nn.MultiheadAttention`` that serves as causal self-attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hyenarec_kernels.nn import HyenaMixer, key_mask
from hyenarec_kernels.nn.masks import NEGLIGIBLE, require
from hyenarec_kernels.ops.checks import check_tensor


class HyenaAttention(nn.Module):
    """:class:`hyenarec_kernels.nn.HyenaMixer` with the signature of ``nn.MultiheadAttention``, also inside
    ``nn.TransformerEncoderLayer``.

    Its calls must be causal, by ``attn_mask`` or ``is_causal``, like calls of ``nn.MultiheadAttention`` for next-item
    prediction. If its mixer is bidirectional, ``attn_mask`` must hide nothing. Calls that a convolution cannot serve
    are refused: for attention weights, cross-attention or other masks. If you put it into an ``nn.TransformerEncoder``
    by hand, set the encoder's ``use_nested_tensor`` to False, as
    :func:`hyenarec_kernels.integrations.replace_attention` does.

    Args:
        embed_dim: D, input and output channels.
        horizon: K, how many events back the filters reach.
        batch_first: (B, L, D) instead of (L, B, D), as in ``nn.MultiheadAttention``.
        query_only: mix the query, and do not read keys and values, which may then be other tensors of its shape. This
            is for SASRec's blocks, whose queries are their normalised keys. Otherwise query, key and value must be one
            tensor.
        dropout: the dropout probability of the output, in training; that of the replaced attention weights is a good
            value.
        options: further arguments of :class:`hyenarec_kernels.nn.HyenaMixer`, such as ``terms``, ``device`` and
            ``dtype``; ``bidirectional=True`` replaces attention without a mask.
    """

    def __init__(
        self,
        embed_dim: int,
        horizon: int,
        *,
        batch_first: bool = False,
        query_only: bool = False,
        dropout: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__()
        self.embed_dim, self.batch_first, self.query_only = embed_dim, batch_first, query_only
        self.mixer = HyenaMixer(embed_dim, horizon, **options)
        self.dropout = nn.Dropout(dropout)
        # nn.TransformerEncoderLayer reads these to decide whether to bypass this module and compute attention itself.
        # It does not where in_proj_bias is None.
        self.num_heads, self.in_proj_bias, self._qkv_same_embed_dim = 1, None, True

    @classmethod
    def like(cls, attention: nn.MultiheadAttention, horizon: int, **options: Any) -> HyenaAttention:
        """A replacement for ``attention``, with its size, layout, dropout, device, dtype and training mode.

        Raises:
            ValueError: ``attention`` is cross-attention: its keys or values have another size than its queries.
        """
        if (attention.kdim, attention.vdim) != (attention.embed_dim, attention.embed_dim):
            raise ValueError(
                f"HyenaAttention: queries, keys and values must be of one size, got {attention.embed_dim}, "
                f"{attention.kdim} and {attention.vdim}: it cannot stand for cross-attention"
            )
        weight = attention.out_proj.weight
        options = {
            "batch_first": attention.batch_first, "dropout": attention.dropout,
            "device": weight.device, "dtype": weight.dtype,
        } | options  # fmt: skip
        return cls(attention.embed_dim, horizon, **options).train(attention.training)

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
        """Returns the mixed query, in its shape, and None in place of attention weights.

        Args:
            query: (B, L, D) with ``batch_first``, (L, B, D) without; or (L, D), one sequence.
            key, value: the query itself (see ``query_only``).
            key_padding_mask: (B, L), or (L,): True, or minus infinity, marks padding.
            need_weights: must be False; note that ``nn.MultiheadAttention``'s default is True.
            attn_mask: the causal mask (L, L), or (B * heads, L, L): True or minus infinity above the diagonal, False or
                0 elsewhere. It may be None if ``is_causal`` is True or the mixer is bidirectional.
            average_attn_weights: not read, as there are no weights.
            is_causal: says that the call is causal; not read if there is an ``attn_mask``.

        Raises:
            ValueError: the call asks for what a convolution cannot give. On an accelerator, and in a compiled program,
                a wrong ``attn_mask`` fails an asynchronous assertion of torch's instead.
        """
        self._check(query, key, value, need_weights, attn_mask, is_causal)
        batched = query.dim() == 3
        x = query if batched else query[None]
        if batched and not self.batch_first:
            x = x.transpose(0, 1)
        mask = None
        if key_padding_mask is not None:
            mask = key_mask(key_padding_mask=key_padding_mask if batched else key_padding_mask[None])
        y = self.dropout(self.mixer(x, mask=mask))
        if not batched:
            return y[0], None
        return (y if self.batch_first else y.transpose(0, 1)), None

    def _check(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool, attn_mask: Tensor | None, is_causal: bool
    ) -> None:
        if isinstance(query, Tensor) and query.is_nested:
            raise ValueError("HyenaAttention: nested tensors are not taken; pass nested_tensor.values() to HyenaMixer")
        check_tensor("HyenaAttention", "query", query)
        if query.dim() not in (2, 3):
            shape = "(B, L, D)" if self.batch_first else "(L, B, D)"
            raise ValueError(f"HyenaAttention: query must be {shape} or (L, D), got {tuple(query.shape)}")
        if need_weights:
            raise ValueError("HyenaAttention: a convolution has no attention weights; pass need_weights=False")
        if self.query_only:
            if not query.shape == key.shape == value.shape:
                raise ValueError(
                    f"HyenaAttention: query, key and value must have one shape, got {tuple(query.shape)}, "
                    f"{tuple(key.shape)} and {tuple(value.shape)}: it cannot stand for cross-attention"
                )
        elif not (key is query and value is query):
            raise ValueError(
                "HyenaAttention: query, key and value must be one tensor: it cannot stand for cross-attention. Where "
                "they are copies, or the query is a normalised key, as in SASRec, construct it with query_only=True"
            )
        if attn_mask is not None:
            length = query.shape[0 if query.dim() == 2 or not self.batch_first else 1]
            _check_mask(attn_mask, length, self.mixer.bidirectional)
        elif is_causal and self.mixer.bidirectional:
            raise ValueError("HyenaAttention: its mixer is bidirectional; a causal call needs one that is not")
        # `is_causal` is read only here: nn.TransformerEncoder computes it, and compiled code cannot branch on the
        # result.
        elif not is_causal and not self.mixer.bidirectional:
            raise ValueError(
                "HyenaAttention: without attn_mask the call is for attention to the future, too; pass is_causal=True "
                "or the causal attn_mask, or construct it with bidirectional=True"
            )


def _check_mask(mask: Tensor, length: int, bidirectional: bool) -> None:
    """Refuses every mask (L, L) or (B * heads, L, L) but the causal one; for a bidirectional mixer, every mask that
    hides something."""
    check_tensor("HyenaAttention", "attn_mask", mask)
    if mask.shape[-2:] != (length, length):
        raise ValueError(
            f"HyenaAttention: attn_mask must be ({length}, {length}), got {tuple(mask.shape)}: it cannot stand for "
            "cross-attention"
        )
    fill = torch.zeros if bidirectional else torch.ones
    hidden = fill(length, length, dtype=torch.bool, device=mask.device).triu(1)
    right = mask == hidden if mask.dtype is torch.bool else torch.where(hidden, mask <= NEGLIGIBLE, mask == 0)
    message = (
        "HyenaAttention: its mixer is bidirectional, and attn_mask hides something; a causal call needs one that is not"
        if bidirectional
        else "HyenaAttention: attn_mask must be the causal mask: True or -inf above the diagonal, False or 0 elsewhere"
    )
    require(right, message)
