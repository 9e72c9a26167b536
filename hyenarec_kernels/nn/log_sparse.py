"""Long filters with less detail at larger lags (the sparsity of LDM, arXiv 2412.16572, as a filter)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from hyenarec_kernels.dtypes import wide
from hyenarec_kernels.legendre import product
from hyenarec_kernels.nn.filters import INITIAL_DEVIATION, Filter
from hyenarec_kernels.sharding import beside


class LogSparseFilter(Filter):
    """Piecewise constant taps, in steps that grow with the lag, times the window.

    The first eight lags have one weight each; after that every doubling of the lag has four steps of one weight each.
    This makes O(log K) weights per group, like a forecaster that keeps the recent past in detail and the rest as
    averages. A filter starts near its window alone; ``weight`` (G*N,) stores the difference from it, group after group.
    """

    scale: Tensor  # (G,) brings the initial filters to an expected norm of 1

    def __init__(
        self,
        groups: int,
        horizon: int,
        window: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(groups, horizon, window=window, device=device, dtype=dtype)
        self.steps = int(step_of_lags(self.horizon)[-1]) + 1
        self.weight = nn.Parameter(torch.empty(groups * self.steps, device=device, dtype=dtype))
        self.register_buffer("scale", torch.empty(groups, device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.normal_(self.weight)
        self.weight.mul_(INITIAL_DEVIATION)
        initial = self._initial_window(wide(self.weight.dtype), self.weight.device)
        energy = initial.square().sum(1) * (1 + INITIAL_DEVIATION**2)
        self.scale.copy_(beside(self.scale, energy.rsqrt()))

    def forward(self) -> Tensor:
        dtype = wide(self.weight.dtype)
        steps = one_hot(step_of_lags(self.horizon), self.steps).T.to(dtype).to(self.weight.device)  # (N, K)
        heights = self.scale.to(dtype)[:, None] * (1 + self.weight.to(dtype).view(self.groups, self.steps))  # (G, N)
        return self.windowed(product(heights, steps))


def step_of_lags(horizon: int) -> Tensor:
    """Which step each lag belongs to, counted from 0: (horizon,) int64 on the CPU."""
    lags = torch.arange(horizon, dtype=torch.float64, device="cpu")  # even if the default device is another
    part, doublings = torch.frexp(lags)  # a lag is part * 2^doublings, part from 1/2 to 1
    return torch.where(lags < 8, lags, 4 * doublings + (8 * part).floor() - 12).long()
