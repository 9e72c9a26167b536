"""The linear parts of a Hyena mixer: they start near the identity and are stored as deviations from it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, pad

from hyenarec_kernels.dtypes import wide
from hyenarec_kernels.nn.linear import fast_linear, fast_product, is_plain
from hyenarec_kernels.nn.starts import first, gate_starts, last_identity
from hyenarec_kernels.sharding import agreed, beside
from hyenarec_kernels.tracing import plain

SMALL = 0.2  # standard deviation of initial projections and short convolutions, relative to the identity beside them
# The factor of the stored matrices. The smaller it is, the less it matters if a host library initialises them itself,
# and the more slowly they learn. ml-100k, 20 epochs, mean NDCG@10 on validation and test: with 0.5, .111 and .100 from
# our start, .108 and .098 from matrices drawn by `xavier_normal_` (five seeds); with 0.3, .112 and .100, and .110 and
# .103 (six seeds). Between these starts the last training loss differs by .011 with 0.5, and not with 0.3.
SCALE = 0.3


class Projections(nn.Module):
    """The projection into gates and values, with its short convolution, and the projection out.

        W_in = [0 .. 0, I] + SCALE * in_proj.weight         its last D channels are the values
        W_out = I + SCALE * out_proj.weight
        short taps = (1, 0, .., 0) + short_weight
        short bias = [1, 0 .., 1, 0] + short_bias           1 for the outer gates

    With ``gate_dim`` the gates are projected from channels of their own, which follow the D channels of the values:

        W_in = [0, I + SCALE * in_proj.weight; SCALE * gate_proj.weight, 0]

    (``x`` is multiplied by these from the left, so the weights are transposed.)

    With all parameters at 0 the values pass through unchanged, and the outer gates are 1. A recommender's scores are
    products with the same embeddings that the mixer reads. So averages of past embeddings reach the scores as they are,
    and training need not undo two random matrices first. Some libraries initialise every matrix anew, by
    ``xavier_normal_`` or ``normal_(std=0.02)``. The mixer stays near its start all the same, and under weight decay
    too, because none of the start is in the parameters.

    ml-100k test NDCG@10 after 20 epochs, seed 0: .078 from random weights, .083 with gates near 1, .090 with the short
    convolution near the identity too, .098 with the two projections as well (.084 when only the filters started as
    averages).
    """

    def __init__(
        self,
        dim: int,
        num_gates: int,
        short_width: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        gate_dim: int = 0,
        gate_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim, self.num_gates, self.short_width, self.gate_dim = dim, num_gates, short_width, gate_dim
        # Channels of gates that training drops, of 256. An int, because torch.compile would compile once more for a
        # float.
        self.gates_dropped = round(256 * gate_dropout)
        self.frozen: tuple[Tensor, Tensor] | None = None  # the two matrices, once `freeze` has been called
        channels = (num_gates + 1) * dim
        # The projections have no biases, so that padding stays exactly 0; the short convolution has one, where it
        # matters.
        self.in_proj = nn.Linear(dim, dim if gate_dim else channels, bias=False, device=device, dtype=dtype)
        self.gate_proj: nn.Linear | None = None
        if gate_dim:
            self.gate_proj = nn.Linear(gate_dim, num_gates * dim, bias=False, device=device, dtype=dtype)
        self.short_weight = nn.Parameter(torch.empty(channels, short_width, device=device, dtype=dtype))
        self.short_bias = nn.Parameter(torch.empty(channels, device=device, dtype=dtype))
        self.out_proj = nn.Linear(dim, dim, bias=False, device=device, dtype=dtype)

    @property
    def width(self) -> int:
        """Input channels: D + gate_dim."""
        return self.dim + self.gate_dim

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Gives all parameters new initial values.

        Gates between two convolutions start random: otherwise what passes through both filters would grow with the
        horizon.
        """
        self.frozen = None
        self.short_bias.zero_()
        self.short_weight.normal_(std=SMALL * self.short_width**-0.5)
        made_gates = self.in_proj if self.gate_proj is None else self.gate_proj
        for projection in dict.fromkeys((self.in_proj, self.out_proj, made_gates)):
            projection.weight.normal_(std=SMALL / SCALE * projection.in_features**-0.5)
        if self.num_gates > 2:  # not by slices, which would be copies of a distributed tensor
            weight = made_gates.weight
            gate = torch.arange(weight.shape[0], device=weight.device) // self.dim  # (C,)
            between = (gate > 0) & (gate < self.num_gates - 1)
            weight.div_(beside(weight, torch.where(between, SMALL, 1.0).to(weight.dtype)[:, None]))

    def matrices(self) -> tuple[Tensor, Tensor] | None:
        """``W_in`` (D + gate_dim, C) and ``W_out`` (D, D), for products ``x @ W``; None if a host library has replaced
        a layer or a method."""
        if self.frozen is not None:
            return self.frozen
        if self.replaced() or not (is_plain(self.in_proj) and is_plain(self.out_proj)):
            return None
        w_in, w_out = _whole(self.in_proj).t(), _whole(self.out_proj).t()
        if self.gate_proj is not None:
            if not is_plain(self.gate_proj):
                return None
            gates = SCALE * self.gate_proj.weight.t()  # (gate_dim, num_gates * D)
            none = w_in.new_zeros(self.dim, gates.shape[1]), w_in.new_zeros(self.gate_dim, self.dim)
            w_in = torch.cat((torch.cat((none[0], w_in), 1), torch.cat((gates, none[1]), 1)))
        return w_in, w_out

    def replaced(self) -> bool:
        """Whether a host library has replaced a projection's method."""
        return "project_in" in self.__dict__ or "project_out" in self.__dict__

    @torch.no_grad()
    def freeze(self) -> None:
        """Computes both matrices now and keeps them, instead of computing them for every call: for inference, as the
        weights get no gradients. New weights, by :meth:`reset_parameters` or a state dict, and another device or dtype
        end it."""
        eye = partial(torch.eye, dtype=self.short_weight.dtype, device=self.short_weight.device)
        self.frozen = self.project_in(eye(self.width)).contiguous(), self.project_out(eye(self.dim)).contiguous()

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self.frozen = None
        super()._load_from_state_dict(*arguments)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.frozen = None
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]

    def project_in(self, x: Tensor) -> Tensor:
        """``x`` (..., D + gate_dim) times ``W_in``: (..., C)."""
        if self.frozen is not None:
            return x @ self.frozen[0]
        if self.gate_proj is None:
            return _times(self.in_proj, x)
        values, gates = x[..., : self.dim], x[..., self.dim :]
        return torch.cat((SCALE * fast_linear(self.gate_proj, gates), _times(self.in_proj, values)), -1)

    def project_out(self, v: Tensor) -> Tensor:
        """``v`` (..., D) times ``W_out``: (..., D)."""
        if self.frozen is not None:
            return v @ self.frozen[1]
        return _times(self.out_proj, v)

    def draw_gates(self) -> Tensor | None:
        """Dropout's factors (C,) for the projected channels: 0 or ``1 / (1 - p)`` for those of gates, 1 for those of
        values. None if nothing is dropped, as outside training."""
        if not (self.gates_dropped and self.training and self.num_gates):
            return None
        weight = self.short_weight
        ones = torch.ones(self.num_gates * self.dim, dtype=weight.dtype, device=weight.device)
        drawn = dropout(ones, self.gates_dropped / 256)
        return agreed(weight, pad(drawn, (0, self.dim), value=1.0))

    def short_taps(self) -> Tensor:
        """Taps (C, W) of the short convolution, in float32 (float64 for a float64 mixer)."""
        dtype = wide(self.short_weight.dtype)
        stored = self.short_weight.to(dtype)
        return beside(stored, first(self.short_width, dtype, stored.device)) + stored

    def short_offset(self) -> Tensor:
        """The bias (C,) of the short convolution, in the dtype of its taps."""
        dtype = wide(self.short_bias.dtype)
        stored = self.short_bias.to(dtype)
        return beside(stored, gate_starts(self.num_gates, self.dim, dtype, stored.device)) + stored


def _times(layer: nn.Module, x: Tensor) -> Tensor:
    """``x`` times ``SCALE`` times the weight of ``layer``, plus ``x`` itself in the last channels."""
    if is_plain(layer):
        return fast_product(x, _whole(layer))
    # What a host library put in the layer's place, quantised or adapted, is called as it is.
    projected: Tensor = SCALE * layer(x)
    return projected + pad(x.to(projected.dtype), (projected.shape[-1] - x.shape[-1], 0))


def _whole(layer: nn.Linear) -> Tensor:
    """The identity in the last rows, plus ``SCALE`` times the layer's weight: (out_features, in_features)."""
    weight = layer.weight
    last = last_identity(layer.out_features, layer.in_features, weight.dtype, weight.device)
    start = beside(weight, last)
    # One operation in eager mode. torch.compile fuses the two; alpha it would trace, and then compile the graph again.
    return torch.add(start, weight, alpha=SCALE) if plain() else start + SCALE * weight
