"""The block low-rank Legendre convolution in CUDA without a GPU: the shipped programs compiled for the host, every block
of every launch, against the definition in float64."""

from __future__ import annotations

import ctypes
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_host import DTYPES, NATIVE, SOURCE, HostCase, RowsArgument, needs, ragged
from operator_cases import TOLERANCE
from torch import Tensor

from hyenarec_kernels.backends.cuda.block_plan import BlockPlan, constants, plan_for
from hyenarec_kernels.legendre import legendre_at

NAMES = ("out", "x", "coefficients", "decay", "skip", "pre_gate", "post_gate")
MOST_LEVELS = 8


class Level(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("chunk", "fan", "rank", "near_pairs", "far_first", "far_pairs")]


class Arguments(ctypes.Structure):
    """hyenarec::LegendreBlocksArgs."""

    _fields_ = [
        ("dtype", ctypes.c_int),
        ("packed", ctypes.c_bool),
        *((name, ctypes.c_int64) for name in ("sequences", "rows", "channels", "groups", "terms", "horizon")),
        ("max_length", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("starts", "ends")),
        ("wide_index", ctypes.c_bool),
        *((name, RowsArgument) for name in ("x", "pre_gate", "post_gate")),
        *((name, ctypes.c_void_p) for name in ("coefficients", "decay", "skip")),
        ("num_levels", ctypes.c_int),
        ("levels", Level * MOST_LEVELS),
        ("constants", ctypes.c_void_p),
        *((name, RowsArgument) for name in ("out", "grad", "dx", "dpre_gate", "dpost_gate")),
        *((name, ctypes.c_void_p) for name in ("dcoefficients", "ddecay", "dskip", "workspace")),
    ]


def compiled(target: Path, least: int, source: Path = SOURCE) -> ctypes.CDLL:
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", f"-DHYENAREC_LEAST={least}", f"-I{source}"]
    subprocess.run(["g++", *flags, str(NATIVE / "host_blocks.cpp"), "-o", str(target)], check=True)
    library = ctypes.CDLL(str(target))
    library.blocks_args_size.restype = library.blocks_workspace.restype = ctypes.c_int64
    assert library.blocks_args_size() == ctypes.sizeof(Arguments)
    return library


@dataclass
class BlockCase(HostCase):
    """One call; `taps` is the horizon."""

    terms: int = 8
    decay: float | None = None  # the largest of the groups' decays

    def __post_init__(self) -> None:
        super().__post_init__()
        generator = torch.Generator().manual_seed(self.seed + 1)
        t = self.tensors
        t["coefficients"] = torch.randn(self.groups, self.terms, generator=generator) / self.taps**0.5
        if self.decay is not None:
            t["decay"] = torch.linspace(0, 1, self.groups + 1)[1:] * self.decay
        tau = torch.arange(self.taps, dtype=torch.float64)
        self.basis = legendre_at(tau, self.terms, self.taps)
        self.window = torch.ones(self.groups, self.taps, dtype=torch.float64)
        if self.decay is not None:
            self.window = torch.exp(-t["decay"].double()[:, None] * tau / self.taps)
        t["filter"] = t["coefficients"].double() @ self.basis * self.window

    @property
    def plan(self) -> BlockPlan:
        plan = plan_for(self.terms, self.taps, self.decay is not None, self.rows > self.taps, self.dtype)
        assert plan is not None
        return plan

    def expected(self) -> dict[str, Tensor]:
        values = super().expected()
        dtaps = values.pop("filter")
        values["coefficients"] = (dtaps * self.window) @ self.basis.T
        if self.decay is not None:
            age = torch.arange(self.taps, dtype=torch.float64) / self.taps
            values["decay"] = -(dtaps * self.tensors["filter"] * age).sum(1)
        return values

    def run(self, host: ctypes.CDLL, *, reversed: bool = False) -> dict[str, Tensor]:
        t = self.tensors
        wanted = {"out", "x", "coefficients"} | {name for name in ("pre_gate", "post_gate") if self.has(name)}
        wanted |= ({"skip"} if self.skip else set()) | ({"decay"} if self.decay is not None else set())
        results = {name: torch.full_like(t["x" if name == "out" else name], torch.nan) for name in wanted}
        plan = self.plan
        held = constants(plan, self.decay is not None, torch.device("cpu"))

        def pointer(values: Tensor | None) -> int | None:
            return None if values is None else values.data_ptr()

        args = Arguments(
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
            num_levels=len(plan.levels),
            constants=pointer(held),
            out=RowsArgument.of(results["out"]),
            grad=RowsArgument.of(t["grad"]),
            dx=RowsArgument.of(results["x"]),
            dpre_gate=RowsArgument.of(results.get("pre_gate")),
            dpost_gate=RowsArgument.of(results.get("post_gate")),
            dcoefficients=pointer(results["coefficients"]),
            ddecay=pointer(results.get("decay")),
            dskip=pointer(results.get("skip")),
        )
        numbers = iter(plan.numbers)
        for level in range(len(plan.levels)):
            args.levels[level] = Level(*(next(numbers) for _ in range(6)))
        for backward in (False, True):
            size = host.blocks_workspace(ctypes.byref(args), backward)
            workspace = torch.full((size // 4 + 64,), torch.nan)  # nothing may depend on it; 64 more as a guard
            args.workspace = workspace.data_ptr()
            host.blocks_run(ctypes.byref(args), backward, reversed)
            assert workspace[size // 4 :].isnan().all(), "written past the workspace"
        return results

    def has(self, gate: str) -> bool:
        return self.pre if gate == "pre_gate" else self.post


def wrong(case: BlockCase, found: dict[str, Tensor]) -> dict[str, float]:
    limit = {torch.float32: 1e-5}.get(case.dtype, TOLERANCE[case.dtype])
    errors = {}
    for name, expected in case.expected().items():
        got = found[name].double()
        error = float((got - expected).norm() / expected.norm().clamp_min(1e-30))
        outside = expected == 0 if name in ("out", "x", "pre_gate", "post_gate") else torch.zeros_like(got).bool()
        errors[name] = torch.inf if got[outside].any() else error
    return {name: error for name, error in errors.items() if not error < limit}


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    needs("g++")
    return compiled(tmp_path_factory.mktemp("cuda_blocks") / "host.so", 1 << 24)


def full(rows: int, horizon: int, *, count: int = 1, channels: int = 2, groups: int = 2, **options: object) -> BlockCase:
    return BlockCase(False, rows, [0] * count, [rows] * count, channels, groups, horizon, full=True, **options)  # type: ignore[arg-type]


def check(host: ctypes.CDLL, case: BlockCase) -> None:
    found = case.run(host)
    bad = wrong(case, found)
    assert not bad, f"{bad} in {case.plan}"


def test_one(host: ctypes.CDLL) -> None:
    check(host, full(200, 200))
