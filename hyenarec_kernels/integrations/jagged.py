"""A layer with HSTU's jagged signature, for Meta's generative-recommenders and models that pack sequences as it does.

    replace_attention(model, horizon=200, makers={SequentialTransductionUnitJagged: HyenaUnit.like})

It imports none of these libraries and does not need fbgemm.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import layer_norm

from hyenarec_kernels.nn import HyenaMixer


class HyenaUnit(nn.Module):
    """Replaces ``SequentialTransductionUnitJagged``: normalises, mixes and adds the residual.

    Args:
        embedding_dim: D, input and output channels.
        horizon: K, how many events back the filters reach.
        dropout_ratio: the dropout probability of the mixed output, in training.
        options: further arguments of :class:`hyenarec_kernels.nn.HyenaMixer`.
    """

    def __init__(self, embedding_dim: int, horizon: int, dropout_ratio: float = 0.0, **options: Any) -> None:
        super().__init__()
        self.mixer = HyenaMixer(embedding_dim, horizon, **options)
        self.dropout = nn.Dropout(dropout_ratio)

    @classmethod
    def like(cls, unit: Any, horizon: int, **options: Any) -> HyenaUnit:
        """A replacement with the size and dropout of ``unit``, a ``SequentialTransductionUnitJagged``."""
        return cls(unit._embedding_dim, horizon, unit._dropout_ratio, **options)

    def forward(
        self,
        x: Tensor,
        x_offsets: Tensor,
        all_timestamps: Tensor | None = None,
        invalid_attn_mask: Tensor | None = None,
        delta_x_offsets: Any = None,
        cache: Any = None,
        return_cache_states: bool = False,
    ) -> tuple[Tensor, None]:
        """Mixes packed sequences, each by itself and causally.

        Args:
            x: (T, D), all sequences one after the other.
            x_offsets: (B + 1,) int32 or int64: sequence ``b`` is rows ``x_offsets[b]:x_offsets[b + 1]``.
            all_timestamps, invalid_attn_mask: not read.
            delta_x_offsets, cache, return_cache_states: must be left out.

        Returns:
            (T, D), and None in place of cache states.

        Raises:
            NotImplementedError: HSTU's cache is asked for.
        """
        if delta_x_offsets is not None or cache is not None or return_cache_states:
            raise NotImplementedError(
                "HyenaUnit: HSTU's cache is not supported; HyenaMixer has a state of its own, see HyenaMixer.prefill"
            )
        mixed = self.mixer(layer_norm(x, x.shape[-1:]), cu_seqlens=x_offsets)
        return x + self.dropout(mixed), None
