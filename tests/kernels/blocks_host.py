"""The block low-rank Legendre convolution in CUDA, compiled for the host: calls, expected results, random calls."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from cuda_host import HostCase, error, ragged
from operator_cases import TOLERANCE
from toeplitz_host import parameter_squares
from torch import Tensor

from benchmarks.gpu.host_library import DTYPES, BlockArguments, BlockHost, RowsArgument
from hyenarec_kernels.backends.cuda.block_plan import BlockPlan, constants, plan_for
from hyenarec_kernels.legendre import legendre_at
from hyenarec_kernels.lowrank.levels import TOLERANCE as BOUND
from hyenarec_kernels.lowrank.levels import BasisFilters, last_distance, make_levels

ROWS = ("out", "x", "pre_gate", "post_gate")
NAMES = (*ROWS, "coefficients", "decay", "skip")


@dataclass
class BlockCase(HostCase):
    """One call; `taps` is the horizon. `needs`: the results to compute, of `NAMES`."""

    needs: frozenset[str] = frozenset(NAMES)
    terms: int = 8
    decay: float | None = None  # decay of the fastest group
    even: bool = False  # all groups have the same decay
    chunks: tuple[int, ...] | None = None  # chunk sizes of the levels; None takes the cheapest plan's
    plan: BlockPlan = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        generator = torch.Generator().manual_seed(self.seed + 1)
        t = self.tensors
        t["coefficients"] = torch.randn(self.groups, self.terms, generator=generator) / self.taps**0.5
        tau = torch.arange(self.taps, dtype=torch.float64)
        self.basis = legendre_at(tau, self.terms, self.taps)
        self.window = torch.ones(self.groups, self.taps, dtype=torch.float64)
        if self.decay is not None:
            t["decay"] = torch.linspace(float(self.even), 1, self.groups + 1)[1:] * self.decay
            self.window = torch.exp(-t["decay"].double()[:, None] * tau / self.taps)
        t["filter"] = t["coefficients"].double() @ self.basis * self.window
        beyond = self.rows > self.taps
        plan = plan_for(self.terms, self.taps, self.decay is not None, beyond, self.dtype)
        if self.chunks is not None:
            filters, length = BasisFilters(self.terms + 1, self.taps), self.rows
            shapes = [
                filters.shape(chunk, last_distance(self.taps, length, chunk), BOUND[self.dtype] / 8)
                for chunk in self.chunks
            ]
            levels = make_levels(self.taps, length, self.chunks, tuple(shapes))
            plan = BlockPlan(self.terms, self.taps, levels, 0.0)
        assert plan is not None
        self.plan = plan

    def present(self) -> set[str]:
        optional = {
            "pre_gate": self.pre,
            "post_gate": self.post,
            "skip": self.skip,
            "decay": self.decay is not None,
        }
        return {name for name in self.needs if optional.get(name, True)}

    def expected(self) -> dict[str, Tensor]:
        needs = self.needs
        self.needs = (needs - {"coefficients", "decay"}) | {"filter"}
        values = super().expected()
        self.needs = needs
        dtaps = values.pop("filter")
        values["coefficients"] = (dtaps * self.window) @ self.basis.T
        if self.decay is not None:
            age = torch.arange(self.taps, dtype=torch.float64) / self.taps
            values["decay"] = -(dtaps * self.tensors["filter"] * age).sum(1)
        return {name: values[name] for name in self.present()}

    def squares(self) -> dict[str, Tensor]:
        t, found = self.tensors, super().squares()
        decay = t["decay"].double() if self.decay is not None else None
        return found | parameter_squares(found["filter"], t["filter"], self.taps, self.terms, decay)

    def arguments(self, results: dict[str, Tensor]) -> Any:
        t = self.tensors
        self.held = (
            constants(self.plan, self.decay is not None, torch.device("cpu")) if self.held is None else self.held
        )

        def pointer(values: Tensor | None) -> int | None:
            return None if values is None else values.data_ptr()

        args = BlockArguments(
            dtype=DTYPES[self.dtype],
            packed=self.packed,
            sequences=len(self.starts),
            rows=self.rows,
            channels=self.channels,
            groups=self.groups,
            terms=self.terms,
            horizon=self.taps,
            max_length=self.rows if self.max_length is None else self.max_length,
            starts=None if self.full else pointer(t["starts"]),
            ends=None if self.full else pointer(t["ends"]),
            wide_index=self.wide_index,
            x=RowsArgument.of(t["x"]),
            pre_gate=RowsArgument.of(t["pre_gate"] if self.pre else None),
            post_gate=RowsArgument.of(t["post_gate"] if self.post else None),
            coefficients=pointer(t["coefficients"]),
            decay=pointer(t.get("decay")),
            skip=pointer(t["skip"]) if self.skip else None,
            constants=pointer(self.held),
            out=RowsArgument.of(results.get("out")),
            grad=RowsArgument.of(t["grad"]),
            dx=RowsArgument.of(results.get("x")),
            dpre_gate=RowsArgument.of(results.get("pre_gate")),
            dpost_gate=RowsArgument.of(results.get("post_gate")),
            dcoefficients=pointer(results.get("coefficients")),
            ddecay=pointer(results.get("decay")),
            dskip=pointer(results.get("skip")),
        )
        args.set_levels(self.plan.numbers)
        return args


def wrong(case: BlockCase, found: dict[str, Tensor]) -> dict[str, float]:
    """The results whose error is above the tolerance; padding must be exactly zero."""
    errors, squares = {}, case.squares()
    for name, expected in case.expected().items():
        got = found[name].double()
        outside = expected == 0 if name in ROWS else torch.zeros_like(expected, dtype=torch.bool)
        errors[name] = torch.inf if got[outside].any() else error(got, expected, squares.get(name))
    return {name: error for name, error in errors.items() if not error < TOLERANCE[case.dtype]}


def check(host: BlockHost, case: BlockCase) -> None:
    bad = wrong(case, case.run(host))
    assert not bad, f"{bad} in {case}"


def whole(rows: int, horizon: int, *, count: int = 1, channels: int = 2, groups: int = 2, **options: Any) -> BlockCase:
    """A call on a padded batch in which every sequence fills its row."""
    return BlockCase(False, rows, [0] * count, [rows] * count, channels, groups, horizon, full=True, **options)


def random_case(seed: int) -> BlockCase:
    generator = np.random.default_rng(seed)
    packed, full = generator.random() < 0.5, generator.random() < 0.3
    groups = int(generator.integers(1, 4))
    channels = groups * int(generator.choice([1, 2, 3, 15]))
    count, rows = int(generator.integers(1, 4)), int(generator.integers(1, 1800 // (1 + channels // 10)))
    if packed and full:
        count = 1
    starts, ends = ragged(generator, count, rows, packed)
    if full:
        starts, ends = [0] * count, [rows] * count
    flags = generator.random(4) < 0.7
    needs = frozenset(name for name in NAMES if generator.random() < 0.85)
    longest = max(end - start for start, end in zip(starts, ends, strict=True))
    return BlockCase(
        packed,
        rows,
        starts,
        ends,
        channels,
        groups,
        int(generator.choice([1, 200, 256, 257, 511, 512, 600, 767, 900, 1300, 1800])),
        list(DTYPES)[generator.integers(0, 3)],
        *(bool(flag) for flag in flags[:3]),
        full,
        bool(flags[3]),
        longest if packed and generator.random() < 0.5 else None,
        needs,
        seed,
        terms=int(generator.choice([8, 16, 32])),
        decay=float(generator.choice([1.0, 10.0, 300.0])) if generator.random() < 0.5 else None,
    )
