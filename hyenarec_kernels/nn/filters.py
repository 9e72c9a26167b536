"""Long filters as modules: what a Hyena mixer convolves with.

Stored parameters have unit scale whatever the horizon; ``forward`` multiplies in what gives a filter a norm of about 1.
So one learning rate suits any horizon. Windows and polynomials are stored as deviations from their initial values
(:mod:`hyenarec_kernels.nn.starts`), so weight decay, and a host library that initialises all parameters itself, leave
filters near these values. The coefficients of all groups are stored as one vector, because libraries that initialise
every matrix anew leave vectors as they are.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from itertools import pairwise
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from hyenarec_kernels.dtypes import wide
from hyenarec_kernels.integers import integer
from hyenarec_kernels.legendre import legendre_at, legendre_basis, product, window
from hyenarec_kernels.nn.linear import hooked, is_plain
from hyenarec_kernels.nn.starts import first, log_rates
from hyenarec_kernels.ops.legendre_conv import legendre_conv
from hyenarec_kernels.ops.long_conv import long_conv
from hyenarec_kernels.segments import Index, Segments
from hyenarec_kernels.sharding import beside

if TYPE_CHECKING:
    from typing_extensions import Unpack


# Standard deviation of a filter's initial coefficients, except the constant's. ml-100k NDCG@10, means of three seeds,
# 20 epochs, with the mixer's output scaled by 0.2: validation .108, test .093. With all coefficients random, of
# standard deviation 1: .104 and .085.
INITIAL_DEVIATION = 0.1


class ConvOptions(TypedDict, total=False):
    """The keyword arguments of :func:`hyenarec_kernels.long_conv`."""

    lengths: Index | None
    starts: Index | None
    cu_seqlens: Index | None
    segments: Segments | None
    pre_gate: Tensor | None
    post_gate: Tensor | None
    last_only: bool


class Filter(nn.Module):
    """A bank of ``groups`` causal filters of ``horizon`` taps; subclasses define :meth:`forward`.

    Args:
        groups: G; group ``g`` serves the channels ``g * D/G`` to ``(g+1) * D/G - 1``.
        horizon: K, the filters' length in events; a constant of the model, not the length of a batch.
        window: multiply the taps by ``exp(-rate * tau / K)``, with one learned ``rate`` per group. Initial rates are
            log-spaced from 1 to K/4 over the groups: some channels remember the whole horizon, which suits slow drifts,
            others about four events, which suits bursts. ``log_rate`` stores the logarithm of each rate's ratio to its
            initial value. It starts at 0, and one learning rate suits any horizon.
        device, dtype: of the parameters; torch's defaults if None. On the meta device parameters have no values until
            ``to_empty`` and :meth:`reset_parameters`, or a state dict, fill them.
    """

    def __init__(
        self,
        groups: int,
        horizon: int,
        *,
        window: bool,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        kind = type(self).__name__
        self.groups, self.horizon = groups, horizon = integer(kind, "groups", groups), integer(kind, "horizon", horizon)
        # Stored with the weights to tell kind and horizon: weights of others might load and mean something else. Every
        # loader compares names and shapes. The buffer has no elements, so that nothing has to fill it on the meta
        # device.
        stored = f"{kind.removesuffix('Filter').lower()}_horizon"
        self.register_buffer(stored, torch.empty(0, horizon, device=device, dtype=dtype))
        self.log_rate = nn.Parameter(torch.empty(groups, device=device, dtype=dtype)) if window else None
        Filter.reset_parameters(self)  # a subclass may have nothing else to fill

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Gives every parameter, and every buffer computed from them, a new initial value. Subclasses extend it, and
        call it at the end of their constructor."""
        if self.log_rate is not None:
            self.log_rate.zero_()

    def forward(self) -> Tensor:
        """The taps (G, K), lag 0 first, in float32 (float64 for a float64 module)."""
        raise NotImplementedError(f"{type(self).__name__} must define forward")

    def convolve(self, x: Tensor, skip: Tensor | None = None, **options: Unpack[ConvOptions]) -> Tensor:
        """:func:`hyenarec_kernels.long_conv` of ``x`` with these taps; ``options`` are its keyword arguments."""
        return long_conv(x, self(), skip, **options)

    def polynomial(self) -> Tensor | None:
        """The Legendre coefficients (G, N) of the taps without the window, in float32 (float64 for a float64 module);
        None if these taps are not polynomials of the lag, or if a call has hooks, which may compute parameters
        (pruning) or change the taps."""
        return None

    def decay(self) -> Tensor | None:
        """The windows' rates (G,) in units of 1/K, as operators take them for ``decay``; None without a window."""
        if self.log_rate is None:
            return None
        dtype = wide(self.log_rate.dtype)
        stored = self.log_rate.to(dtype)
        return (beside(stored, log_rates(self.groups, self.horizon, dtype, stored.device)) + stored).exp()

    def windowed(self, taps: Tensor) -> Tensor:
        """``taps`` (G, K) times the window, if there is one."""
        decay = self.decay()
        return taps if decay is None else taps * window(decay.to(taps.dtype), self.horizon, self.horizon)

    def _initial_window(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The initial window (G, K), or ones without a window. A plain tensor, even if parameters are distributed
        tensors."""
        if self.log_rate is None:
            return torch.ones(self.groups, self.horizon, dtype=dtype, device=device)
        return window(log_rates(self.groups, self.horizon, dtype, device).exp(), self.horizon, self.horizon)

    def extra_repr(self) -> str:
        return f"groups={self.groups}, horizon={self.horizon}, window={self.log_rate is not None}"


class BasisFilter(Filter):
    """A filter with ``terms`` learned coefficients per group over a fixed basis, times the window.

    It starts near its window alone, an exponential average of the past: the constant term has coefficient 1, the others
    are random with standard deviation ``INITIAL_DEVIATION`` (the mean cosine between initial Legendre filters and their
    windows is 0.8). If all of them were equally random, over half of a filter's energy would lie at lag 0, where the
    terms add up. ``weight`` (G*N,) stores the difference from the constant term alone, group after group.
    """

    scale: Tensor  # (G,) brings the initial filters to an expected norm of 1

    def __init__(
        self,
        groups: int,
        horizon: int,
        terms: int = 16,
        window: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(groups, horizon, window=window, device=device, dtype=dtype)
        self.terms = terms = integer(type(self).__name__, "terms", terms)
        self.weight = nn.Parameter(torch.empty(groups * terms, device=device, dtype=dtype))
        self.register_buffer("scale", torch.empty(groups, device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.normal_(self.weight)
        dtype, device = wide(self.weight.dtype), self.weight.device
        deviations = INITIAL_DEVIATION * (1 - first(self.terms, self.weight.dtype, device)).repeat(self.groups)
        self.weight.mul_(beside(self.weight, deviations))
        squares = self.basis(dtype, device).square()  # (N, K)
        energy = squares[0] + INITIAL_DEVIATION**2 * squares[1:].sum(0)  # (K,) expected, before the window
        self.scale.copy_(beside(self.scale, (self._initial_window(dtype, device).square() @ energy).rsqrt()))

    def basis(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The basis (N, K), each row of mean square about 1. It may be shared: do not write to it."""
        raise NotImplementedError(f"{type(self).__name__} must define basis")

    def coefficients(self) -> Tensor:
        """The coefficients of the basis, (G, N), in float32 (float64 for a float64 module)."""
        dtype = wide(self.weight.dtype)
        constant = beside(self.weight, first(self.terms, dtype, self.weight.device))  # (N,)
        deviations = self.weight.to(dtype).view(self.groups, self.terms)  # (G, N)
        return self.scale.to(dtype)[:, None] * (constant + deviations)

    def forward(self) -> Tensor:
        coefficients = self.coefficients()
        return self.windowed(product(coefficients, self.basis(coefficients.dtype, coefficients.device)))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, terms={self.terms}"


class _PolynomialFilter(BasisFilter):
    """A filter whose :meth:`convolve` passes coefficients to the operator, which need not compute all taps."""

    def legendre(self) -> Tensor:
        """The Legendre coefficients, (G, N)."""
        raise NotImplementedError(f"{type(self).__name__} must define legendre")

    def polynomial(self) -> Tensor | None:
        return None if hooked(self) else self.legendre()

    def convolve(self, x: Tensor, skip: Tensor | None = None, **options: Unpack[ConvOptions]) -> Tensor:
        if (coefficients := self.polynomial()) is None:
            return super().convolve(x, skip, **options)
        return legendre_conv(x, coefficients, skip, horizon=self.horizon, decay=self.decay(), **options)


class LegendreFilter(_PolynomialFilter):
    """A series of Legendre polynomials over the horizon: :func:`hyenarec_kernels.legendre_filter` (arXiv
    2603.25027)."""

    def basis(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        return legendre_basis(self.terms, self.horizon, dtype, device)

    def legendre(self) -> Tensor:
        return self.coefficients()


class ChebyshevFilter(_PolynomialFilter):
    """Chebyshev polynomials of the first kind, ``sqrt(2) T_n(2*tau/(K-1) - 1)``, ``T_0`` itself; for comparison.

    They span the same space as the same number of Legendre polynomials.
    """

    def basis(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        lags = torch.arange(self.horizon, dtype=torch.float64, device="cpu")  # even if the default device is another
        x = 2 * lags / max(self.horizon - 1, 1) - 1
        return _harmonics(x.arccos(), self.terms).to(dtype).to(device)  # T_n(cos t) = cos(n t)

    def legendre(self) -> Tensor:
        coefficients = self.coefficients()
        change = _chebyshev_to_legendre(self.terms).to(coefficients.dtype).to(coefficients.device)
        return product(coefficients, change)


class CosineFilter(BasisFilter):
    """The discrete cosine transform's basis (DCT-II), ``sqrt(2) cos(pi n (tau + 1/2) / K)``; for comparison."""

    def basis(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        phase = (torch.arange(self.horizon, dtype=torch.float64, device="cpu") + 0.5) * (math.pi / self.horizon)
        return _harmonics(phase, self.terms).to(dtype).to(device)


class ExplicitFilter(Filter):
    """One learned weight per tap, (G*K,), without a window."""

    def __init__(
        self,
        groups: int,
        horizon: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(groups, horizon, window=False, device=device, dtype=dtype)
        self.weight = nn.Parameter(torch.empty(groups * horizon, device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)

    def forward(self) -> Tensor:
        taps: Tensor = self.weight.to(wide(self.weight.dtype)) * self.horizon**-0.5
        return taps.view(self.groups, self.horizon)


class ImplicitFilter(Filter):
    """The original Hyena filter (arXiv 2302.10866, section 3.3): a windowed MLP of positions, with sine activations.

        h = window * MLP(tau/K, cos(2 pi f tau/K), sin(2 pi f tau/K)),    f = 0, ..., bands-1

    Besides ``tau/K`` the MLP reads the real and imaginary parts of complex exponentials. It has ``depth`` hidden layers
    of ``width`` units with activation ``sin(frequency * z)``; a high ``frequency`` lets it fit detail.
    """

    scale: Tensor  # (G,) as in BasisFilter

    def __init__(
        self,
        groups: int,
        horizon: int,
        window: bool = True,
        *,
        bands: int = 8,
        width: int = 64,
        depth: int = 3,
        frequency: float = 10.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(groups, horizon, window=window, device=device, dtype=dtype)
        kind = type(self).__name__
        bands = integer(kind, "bands", bands, 0)
        width, depth = integer(kind, "width", width), integer(kind, "depth", depth)
        self.bands, self.width, self.frequency = bands, width, frequency
        # Stored with the weights as the horizon is: shapes tell everything else.
        stored = f"frequency_{float(frequency)!r}".replace(".", "_")
        self.register_buffer(stored, torch.empty(0, device=device, dtype=dtype))
        sizes = [1 + 2 * bands] + [width] * depth
        self.weight = nn.Parameter(torch.empty(groups * width, device=device, dtype=dtype))
        # Left empty for `reset_parameters` to fill: filling them twice would draw random numbers twice.
        layers: list[nn.Module] = [
            nn.utils.skip_init(  # type: ignore[no-untyped-call]
                nn.Linear, *size, device=self.weight.device, dtype=self.weight.dtype
            )
            for size in pairwise(sizes)
        ]
        self.hidden = nn.ModuleList(layers)
        self.register_buffer("scale", torch.empty(groups, device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        for layer in self.hidden:
            assert isinstance(layer, nn.Linear)
            layer.reset_parameters()
        nn.init.normal_(self.weight)
        self.weight.mul_((2 / self.width) ** 0.5)  # a sine's mean square is 1/2, so outputs have unit variance
        initial = self._initial_window(wide(self.weight.dtype), self.weight.device)
        self.scale.copy_(beside(self.scale, initial.square().sum(1).rsqrt()))

    def forward(self) -> Tensor:
        dtype, device = wide(self.weight.dtype), self.weight.device
        age = torch.arange(self.horizon, dtype=dtype, device=device) / self.horizon  # (K,)
        phase = 2 * math.pi * age[:, None] * torch.arange(self.bands, dtype=dtype, device=device)  # (K, bands)
        available = torch.amp.is_autocast_available(device.type)  # not on the meta device
        with torch.autocast(device.type, enabled=False) if available else nullcontext():
            z = torch.cat([age[:, None], phase.cos(), phase.sin()], 1)  # (K, 1 + 2 bands)
            z = beside(self.weight, z)
            for layer in self.hidden:
                if is_plain(layer):
                    z = linear(z, layer.weight.to(dtype), layer.bias.to(dtype))
                else:  # quantised, adapted, with hooks: called as it is
                    z = layer(z.to(self.weight.dtype)).to(dtype)
                z = torch.sin(self.frequency * z)  # (K, width)
            taps = linear(self.weight.to(dtype).view(self.groups, self.width), z)  # (G, K)
        return self.windowed(self.scale.to(dtype)[:, None] * taps)


def _chebyshev_to_legendre(terms: int) -> Tensor:
    """The change of basis from `ChebyshevFilter` to `LegendreFilter`, the same for every horizon: (N, N) float64.

    Both bases are evaluated at N Chebyshev nodes, which determine polynomials of N terms; there the linear system is
    well conditioned.
    """
    phase = (torch.arange(terms, dtype=torch.float64) + 0.5) * (math.pi / terms)
    legendre = legendre_at(phase.cos() + 1, terms, 3)  # a horizon of 3 maps lags 0 .. 2 to -1 .. 1
    change: Tensor = torch.linalg.solve(legendre, _harmonics(phase, terms), left=False)
    return change


def _harmonics(phase: Tensor, terms: int) -> Tensor:
    """``cos(n phase)`` for n < terms, all but the constant times sqrt(2): takes (K,), returns (terms, K)."""
    rows = math.sqrt(2) * torch.cos(torch.arange(terms, dtype=phase.dtype, device=phase.device)[:, None] * phase)
    return torch.cat([torch.ones_like(rows[:1]), rows[1:]])
