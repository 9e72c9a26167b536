"""A replacement for the attention module of FlashAttention's own models, which takes packed sequences."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hyenarec_kernels.nn import HyenaMixer, key_mask


class HyenaMHA(nn.Module):
    """:class:`hyenarec_kernels.nn.HyenaMixer` with the signature of ``flash_attn.modules.mha.MHA``. It does not
    import flash_attn.

    Args:
        embed_dim: D, input and output channels.
        horizon: K, how many events back the filters reach.
        dropout: the dropout probability of the output, in training.
        return_residual: also return the input, as that module does for fused blocks.
        options: further arguments of :class:`hyenarec_kernels.nn.HyenaMixer`; ``bidirectional=True`` is
            ``causal=False``.
    """

    def __init__(
        self, embed_dim: int, horizon: int, *, dropout: float = 0.0, return_residual: bool = False, **options: Any
    ) -> None:
        super().__init__()
        self.mixer, self.dropout = HyenaMixer(embed_dim, horizon, **options), nn.Dropout(dropout)
        self.return_residual = return_residual

    @classmethod
    def like(cls, attention: Any, horizon: int, **options: Any) -> HyenaMHA:
        """A replacement for the module ``attention``, for
        ``replace_attention(model, horizon, {MHA: HyenaMHA.like})``."""
        if attention.cross_attn:
            raise ValueError("HyenaMHA: it cannot stand for cross-attention")
        weight = attention.out_proj.weight
        options = {
            "dropout": attention.inner_attn.drop.p, "return_residual": attention.return_residual,
            "bidirectional": not attention.causal, "device": weight.device, "dtype": weight.dtype,
        } | options  # fmt: skip
        return cls(attention.embed_dim, horizon, **options).train(attention.training)

    def forward(
        self,
        x: Tensor,
        x_kv: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        mixer_subset: Tensor | None = None,
        inference_params: Any = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Returns the mixed ``x``, in its shape; with ``return_residual`` the pair of it and ``x``.

        Args:
            x: (B, L, D), or packed (T, D) with ``cu_seqlens``.
            key_padding_mask: (B, L), True at *real* positions, unlike in ``nn.MultiheadAttention``.
            cu_seqlens: (S + 1,) int32, the start of each packed sequence, then the end of the last.
            max_seqlen: not read.

        Raises:
            ValueError: ``x_kv``, ``mixer_subset`` or ``inference_params`` is given, or a mask together with
                ``cu_seqlens``.
        """
        for name, given in (("x_kv", x_kv), ("mixer_subset", mixer_subset), ("inference_params", inference_params)):
            if given is not None:
                raise ValueError(f"HyenaMHA: {name} must be None: it mixes whole sequences, each with itself alone")
        mask = None if key_padding_mask is None else key_mask(key_padding_mask)
        y = self.dropout(self.mixer(x, mask=mask, cu_seqlens=cu_seqlens))
        return (y, x) if self.return_residual else y
