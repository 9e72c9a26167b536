"""Plans of the CPU convolution: the bound that they promise, what they cover, and when they are direct."""

from __future__ import annotations

import dataclasses
import math
import random

import numpy as np
import pytest
import torch

from hyenarec_kernels.backends import compiled, cpu
from hyenarec_kernels.backends.cpu.plan import Plan, WireHead, WireLevel, block_plan, direct_plan, plan_for
from hyenarec_kernels.lowrank.blocks import (
    blocks_from_nodes,
    chebyshev_nodes,
    entries,
    kept_entries,
    local_basis,
    sampled_basis,
)
from hyenarec_kernels.lowrank.levels import TOLERANCE, BasisFilters, Level


def far_part(plan: Plan, terms: int, length: int) -> np.ndarray:
    """The matrix (length, length, terms) that a plan's taps and blocks stand for, made from the plan's own samples."""
    samples = sampled_basis(plan.lags, terms, plan.horizon)
    size = -(-length // plan.levels[-1].chunk) * plan.levels[-1].chunk
    matrix = np.zeros((size, size, terms))
    chunk = plan.chunk
    for i in range(size):
        for j in range(i // chunk * chunk, i + 1):
            if i - j < plan.near_taps:
                matrix[i, j] = samples[i - j]
        if plan.far_taps:
            for lag in range(plan.far_lag + i % chunk, plan.horizon):
                if lag <= i:
                    matrix[i, i - lag] = samples[plan.near_taps + lag - plan.far_lag]
    row = plan.near_taps + plan.far_taps
    projector = np.eye(size)
    for level in plan.levels:
        basis = local_basis(level.chunk, level.rank)
        r, s = (index[kept_entries(level.nodes, level.rank, level.degree)] for index in entries(level.nodes))
        from_nodes = blocks_from_nodes(level.chunk, level.nodes)[kept_entries(level.nodes, level.rank, level.degree)]
        for distance in level.distances:
            block = np.zeros((level.rank, level.rank, terms))
            block[r, s] = from_nodes @ samples[row : row + level.nodes]
            row += level.nodes
            dense = np.einsum("ia,abn,jb->ijn", basis, block, basis, optimize=True)
            for i in range(distance, size // level.chunk):
                place = i % level.fan if level.fan else i
                near = distance <= level.near_pairs
                if place < distance if near else level.far_first + place > distance:
                    continue
                rows, columns = slice(i * level.chunk, (i + 1) * level.chunk), (i - distance) * level.chunk
                lower = projector_below(projector, level.chunk, i, i - distance)
                matrix[rows, columns : columns + level.chunk] += lower(dense)
        projector = projector @ np.kron(np.eye(size // level.chunk), basis @ basis.T)
    return matrix[:length, :length]


def projector_below(projector: np.ndarray, chunk: int, i: int, j: int):  # type: ignore[no-untyped-def]
    """Projects a block of a level as the levels below it do, on both sides."""
    left = projector[i * chunk : (i + 1) * chunk, i * chunk : (i + 1) * chunk]
    right = projector[j * chunk : (j + 1) * chunk, j * chunk : (j + 1) * chunk]
    return lambda dense: np.einsum("ia,abn,jb->ijn", left, dense, right, optimize=True)


def worst_chunk(plan: Plan, terms: int, length: int) -> float:
    """The most by which one chunk of rows can be off, in norm, for any input and any coefficients of norm 1."""
    horizon = plan.horizon
    taps = sampled_basis(np.arange(horizon, dtype=np.float64), terms, horizon)
    lag = np.arange(length)[:, None] - np.arange(length)
    exact = np.where(((lag >= 0) & (lag < horizon))[..., None], taps[np.clip(lag, 0, horizon - 1)], 0)
    error = far_part(plan, terms, length) - exact
    return max(float(np.linalg.norm(error[start : start + plan.chunk])) for start in range(0, length, plan.chunk))


@pytest.mark.parametrize(
    ("terms", "horizon", "length"),
    [(8, 256, 256), (8, 200, 256), (16, 300, 300), (4, 300, 540), (36, 256, 256)],
)
def test_bound_holds_for_every_filter_input_and_chunk(terms: int, horizon: int, length: int) -> None:
    plan = block_plan(terms, horizon, length, 1e-5)
    assert plan is not None and plan.levels
    # few terms are exact apart from rounding
    assert 0 < worst_chunk(plan, terms, length) <= plan.bound * np.sqrt(horizon) + 1e-11
    assert plan.bound <= 1e-5


OTHERS = (torch.float64, torch.bfloat16, torch.float16)  # 4 s each


@pytest.mark.parametrize("dtype", [torch.float32, *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in OTHERS)])
def test_every_plan_meets_its_tolerance(dtype: torch.dtype) -> None:
    """This holds for any terms, horizon and length, of which short ones are more frequent; half the plans have
    blocks."""
    draw, blocks = random.Random(0), 0
    for _ in range(80):
        horizon, length = (draw.randint(1, draw.choice([300, 5000])) for _ in range(2))
        plan = plan_for(draw.randint(1, 64), horizon, draw.choice([length, horizon]), dtype)
        assert plan.bound <= TOLERANCE[dtype], (horizon, length)
        blocks += bool(plan.levels)
    assert blocks > 20


def test_the_bound_follows_the_tolerance() -> None:
    """The bound follows the tolerance, and the chosen shape is not far more precise than the tolerance needs."""
    tight, loose = block_plan(16, 512, 512, 1e-6), block_plan(16, 512, 512, 1e-3)
    assert tight is not None and loose is not None
    assert loose.bound > tight.bound
    assert 1e-6 >= tight.bound > 1e-10


@pytest.mark.parametrize(("terms", "horizon"), [(16, 512), (24, 1024)])
def test_a_levels_bound_is_its_error_against_taps_at_every_lag(terms: int, horizon: int) -> None:
    filters = BasisFilters(terms, horizon)
    level = Level(32, 0, 6, 8, 11, horizon // 32 - 1, horizon // 32, 0)
    basis, (r, s) = local_basis(32, 6), entries(11)
    kept = kept_entries(11, 6, 8)
    distances = np.arange(1, horizon // 32, dtype=np.float64)
    lag = np.arange(32)[:, None] - np.arange(32)

    squares = 0.0
    for distance in distances:
        true = sampled_basis((32 * distance + lag).reshape(-1), terms, horizon).reshape(32, 32, terms)
        block = np.zeros((6, 6, terms))
        nodes = 32 * distance + 31 * chebyshev_nodes(11)
        block[r[kept], s[kept]] = blocks_from_nodes(32, 11)[kept] @ sampled_basis(nodes, terms, horizon)
        squares += np.square(true - np.einsum("ia,abn,jb->ijn", basis, block, basis, optimize=True)).sum()
    bound = filters.bound(level, int(distances[-1]))
    assert bound == pytest.approx(math.sqrt(squares / horizon), rel=1e-6)
    short = dataclasses.replace(level, nodes=8)  # too few nodes for the entries kept: more error, and a larger bound
    assert filters.bound(short, int(distances[-1])) > bound


def test_lags_lie_within_the_horizon() -> None:
    for horizon, length in [(1000, 1000), (1021, 1021), (300, 1000), (96, 1000), (1024, 1024)]:
        plan = block_plan(16, horizon, length, 1e-5)
        assert plan is not None
        assert plan.lags.min() >= 0
        assert plan.lags.max() <= horizon - 1 + 1e-9


def test_short_sequences_are_direct_and_long_ones_are_not() -> None:
    assert not plan_for(32, 50, 50, torch.float32).levels
    assert plan_for(32, 1024, 1024, torch.float32).levels
    assert plan_for(32, 1024, 1024, torch.float32) is plan_for(32, 1024, 1024, torch.float32)


def test_coarser_dtypes_get_smaller_ranks() -> None:
    fine, coarse = plan_for(32, 1024, 1024, torch.float32), plan_for(32, 1024, 1024, torch.bfloat16)
    assert coarse.levels[0].rank < fine.levels[0].rank


@pytest.mark.parametrize(("horizon", "length"), [(1, 1), (3, 40), (64, 1000), (50, 50), (7, 5)])
def test_direct_plan_samples_every_lag_that_can_be_used(horizon: int, length: int) -> None:
    plan = direct_plan(horizon, length)
    needed = set(range(min(horizon, length)))
    assert needed <= set(plan.lags.astype(int).tolist())
    assert plan.bound == 0


needs_extension = pytest.mark.skipif(cpu.probe() is not None, reason=f"cpu backend: {cpu.probe()}")


@needs_extension
def test_both_sides_name_the_plans_fields_alike() -> None:
    head, level = torch.ops.hyenarec_cpu.plan_fields().split("/")
    assert tuple(head.split()) == WireHead._fields
    assert tuple(level.split()) == WireLevel._fields
    assert torch.ops.hyenarec_cpu.interface() == compiled.INTERFACE


@needs_extension
@pytest.mark.parametrize("field", ["version", "head_fields", "level_fields"])
def test_a_plan_of_another_version_is_refused(field: str) -> None:
    plan = direct_plan(8, 40)
    numbers = plan.numbers.clone()
    numbers[WireHead._fields.index(field)] += 1
    x, samples = torch.randn(1, 40, 3), torch.randn(len(plan.lags), 3)
    with pytest.raises(RuntimeError, match=r"the compiled extension reads version .*: reinstall"):
        torch.ops.hyenarec_cpu.conv(x, samples, *[None] * 7, numbers, plan.constants(torch.float32))


@needs_extension
def test_a_plan_for_shorter_sequences_is_refused() -> None:
    plan = direct_plan(8, 40)
    x, samples = torch.randn(1, 41, 3), torch.randn(len(plan.lags), 3)
    with pytest.raises(RuntimeError, match="at most 40 rows, and one has 41"):
        torch.ops.hyenarec_cpu.conv(x, samples, *[None] * 7, plan.numbers, plan.constants(torch.float32))
