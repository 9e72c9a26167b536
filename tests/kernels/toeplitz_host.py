"""The shipped Toeplitz programs (csrc/cuda/legendre_conv.h) on the host, with explicit and with Legendre filters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from cuda_host import HostCase, ragged, wrong
from torch import Tensor

from benchmarks.gpu.host_library import DTYPES, LegendreArguments, ToeplitzHost
from hyenarec_kernels.legendre import filter_gradients, legendre_at, taps_of


def parameter_squares(
    squares: Tensor, filter: Tensor, horizon: int, terms: int, decay: Tensor | None
) -> dict[str, Tensor]:
    """The sums of squares of the terms of coefficients' and decay's gradients, from those of the taps, (G, K)."""
    lag = torch.arange(horizon, dtype=torch.float64)
    window = torch.ones_like(filter) if decay is None else torch.exp(-decay[:, None] * lag / horizon)
    return {
        "coefficients": squares * window**2 @ legendre_at(lag, terms, horizon).T ** 2,
        "decay": (squares * (filter * lag / horizon) ** 2).sum(1),
    }


@dataclass
class ToeplitzCase(HostCase):
    """One call. With ``terms`` > 0 the taps come from that many random coefficients, with a window if ``windowed``."""

    terms: int = 0
    windowed: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tensors["filter"] = self.tensors["filter"] / max(self.taps, 1) ** 0.5
        if self.terms:
            generator = torch.Generator().manual_seed(self.seed)
            coefficients = torch.randn(self.groups, self.terms, generator=generator) / self.taps**0.5
            self.tensors["coefficients"] = coefficients
            self.tensors["decay"] = 4 * torch.rand(self.groups, generator=generator)
            decay = self.tensors["decay"].double() if self.windowed else None
            self.tensors["filter"] = taps_of(coefficients.double(), self.taps, decay, None)

    def expected(self) -> dict[str, Tensor]:
        found = super().expected()
        if self.terms and "filter" in found:
            decay = self.tensors["decay"].double() if self.windowed else None
            coefficients = self.tensors["coefficients"].double()
            gradients = filter_gradients(found.pop("filter"), self.tensors["filter"], coefficients, decay, self.taps)
            found |= {"coefficients": gradients[0]} | ({"decay": gradients[1]} if self.windowed else {})
        return found

    def squares(self) -> dict[str, Tensor]:
        found = super().squares()
        if self.terms:
            decay = self.tensors["decay"].double() if self.windowed else None
            found |= parameter_squares(found["filter"], self.tensors["filter"], self.taps, self.terms, decay)
        return found

    def results(self) -> dict[str, Tensor]:
        made = super().results()
        if self.terms and made.pop("filter", None) is not None:
            for name in ("coefficients", *(("decay",) if self.windowed else ())):
                made[name] = torch.full_like(self.tensors[name], torch.nan)
        return made

    def arguments(self, results: dict[str, Tensor]) -> LegendreArguments:
        def pointer(name: str, of: dict[str, Tensor]) -> int | None:
            return of[name].data_ptr() if name in of else None

        name = "coefficients" if self.terms else "filter"
        return LegendreArguments(
            rows=super().arguments({key: value for key, value in results.items() if key != name}),
            parameters=DTYPES[torch.float32],
            filter=pointer(name, self.tensors),
            decay=pointer("decay", self.tensors) if self.windowed else None,
            terms=self.terms or self.taps,
            horizon=self.taps if self.terms else 0,
            skip_dtype=DTYPES[torch.float32],
            skip=pointer("skip", self.tensors) if self.skip else None,
            dfilter=pointer(name, results),
            ddecay=pointer("decay", results),
            dskip=pointer("skip", results),
        )


def check(host: ToeplitzHost, case: ToeplitzCase) -> None:
    found = case.run(host)
    bad = wrong(case, found)
    assert not bad, f"{bad} in {case}"
    backwards = case.run(host, reversed=True)
    for name, value in found.items():
        assert torch.equal(value, backwards[name]), f"{name} depends on the order of threads in {case}"


def random_case(seed: int, most_rows: int, most_taps: int) -> ToeplitzCase:
    generator = np.random.default_rng(seed)
    packed = generator.random() < 0.6
    groups = int(generator.integers(1, 5))
    channels = groups * int(generator.integers(1, 8))
    count, rows = int(generator.integers(1, 7)), int(generator.integers(1, most_rows + 1))
    full = not packed and generator.random() < 0.3
    starts, ends = ragged(generator, count, rows, packed)
    if full:
        starts, ends = [0] * count, [rows] * count
    flags = generator.random(6) < 0.7
    return ToeplitzCase(
        packed,
        rows,
        starts,
        ends,
        channels,
        groups,
        int(generator.integers(1, most_taps + 1)),
        list(DTYPES)[seed % 3],
        *(bool(flag) for flag in flags[:3]),
        full,
        bool(flags[3]),
        seed=seed,
        terms=int(generator.integers(1, 33)) if flags[4] else 0,
        windowed=bool(flags[4] and flags[5]),
    )
