"""LRURec's mixer: the linear recurrent unit (arXiv 2310.02367 and its authors' code; LRU, arXiv 2303.06349).

    h_t = lambda h_{t-1} + gamma (B x_t + b),    lambda = exp(-exp(nu) + i exp(theta))
    y_t = Re(C h_t) + c

The complex state has 2 D channels. |lambda| is drawn from [0.8, 0.99] at initialisation, gamma starts at
sqrt(1 - |lambda|^2), and both are learned. The residual connection and the norm are the backbone's; the paper's block
is post-norm.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hyenarec.config import ModelConfig
from hyenarec.mixers.base import Mixer, TensorState
from hyenarec.mixers.recurrences.scan import advance, complex_matrix, linear_scan
from hyenarec.packing import Packing
from hyenarec_kernels.nn import fast_linear

SMALLEST, LARGEST = 0.8, 0.99  # |lambda| at initialisation


class LRUMixer(Mixer):
    """A complex diagonal linear recurrence; a dimension of size 2 holds the real and imaginary parts."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        channels = 2 * config.dim
        size = torch.empty(channels).uniform_(SMALLEST**2, LARGEST**2).sqrt()  # uniform over the ring's area
        self.nu = nn.Parameter((-size.log()).log())
        self.theta = nn.Parameter((2 * math.pi * torch.rand(channels)).log())
        self.gamma = nn.Parameter((1 - size**2).log() / 2)  # stored as a logarithm, like theta
        self.input = nn.Linear(config.dim, 2 * channels)
        self.out = nn.Linear(2 * channels, config.dim)

    def forward(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, last_only: bool = False
    ) -> Tensor:
        h = linear_scan(self._matrix(), self._driven(x), packing)
        return self._read(h[packing.last] if last_only else h)

    def init_state(self, sequences: int, *, compact: bool = False) -> TensorState:
        return TensorState(h=self.nu.new_zeros(sequences, 2, self.nu.shape[0]))

    def prefill(
        self, x: Tensor, packing: Packing, *, timestamps: Tensor | None = None, compact: bool = False
    ) -> tuple[Tensor, TensorState]:
        h = linear_scan(self._matrix(), self._driven(x), packing)
        return self._read(h), TensorState(h=h[packing.last])

    def step(self, x: Tensor, state: TensorState, *, timestamps: Tensor | None = None) -> tuple[Tensor, TensorState]:
        h = advance(self._matrix(), state["h"]) + self._driven(x)
        return self._read(h), TensorState(h=h)

    def _matrix(self) -> Tensor:  # (2, 2, 2D)
        size, angle = (-self.nu.exp()).exp(), self.theta.exp()
        return complex_matrix(size * angle.cos(), size * angle.sin())

    def _driven(self, x: Tensor) -> Tensor:  # (T, D) to (T, 2, 2D)
        return fast_linear(self.input, x).view(x.shape[0], 2, -1) * self.gamma.exp()

    def _read(self, h: Tensor) -> Tensor:
        return fast_linear(self.out, h.flatten(1))
