"""The block low-rank Legendre convolution in CUDA without a GPU: the shipped programs run on the host and are compared
with the definition in float64, and nvcc's output is inspected."""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blocks_host import BlockCase, check, random_case, whole, wrong
from cuda_host import block_library, far_rows, mutated, needs
from cuda_ops import race_program
from test_cuda_host import LYING, resources

from benchmarks.gpu.host_library import SOURCE, BlockHost, block_host
from hyenarec_kernels.backends.cuda.block_plan import constants, plan_for
from hyenarec_kernels.lowrank.levels import TOLERANCE as BOUND


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> BlockHost:
    return BlockHost(block_library(tmp_path_factory))


FAST_WINDOW = 65  # bfloat16, one decay of .39 per event; rows on both sides of a tile's end give much of its gradient
OTHERS = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(30, 200) if seed != FAST_WINDOW]


@pytest.mark.parametrize("seed", [*range(30), FAST_WINDOW, *OTHERS])
def test_random_calls(host: BlockHost, seed: int) -> None:
    check(host, random_case(seed))


@pytest.mark.parametrize("seed", [190, 172])
def test_a_row_left_out_of_a_sum_that_nearly_cancels_shows(host: BlockHost, seed: int) -> None:
    """The one decay's gradient is below 1% of what random signs would lead one to expect. An error of one row's size is
    noticed all the same, in bfloat16 and in float32."""
    case = random_case(seed)
    found, expected, squares = case.run(host), case.expected()["decay"], case.squares()["decay"]
    assert expected.norm() < 0.01 * squares.sum().sqrt() and not wrong(case, found)
    found["decay"] += float((squares / case.rows).sqrt())
    assert list(wrong(case, found)) == ["decay"]


def borders(horizon: int, dtype: torch.dtype = torch.float32) -> BlockCase:
    """Packed sequences as long as one or two tiles, one row longer or shorter, or empty."""
    cuts = np.cumsum([0, 256, 0, 255, 257, 1, 512, 511, 0, 513, 0]).tolist()
    return BlockCase(True, cuts[-1], cuts[:-1], cuts[1:], 3, 3, horizon, dtype, decay=5.0)


@pytest.mark.parametrize("horizon", [100, 256, 257, 511, 512, 513, 4000])
def test_sequences_as_long_as_tiles(host: BlockHost, horizon: int) -> None:
    check(host, borders(horizon))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("terms", [8, 16, 32])
def test_numbers_of_terms(host: BlockHost, terms: int, dtype: torch.dtype) -> None:
    check(host, whole(1100, 1024, terms=terms, dtype=dtype, decay=3.0))


@pytest.mark.parametrize("horizon", [4200, 3000, 2100])  # its end lies on the lowest level or on higher ones
@pytest.mark.parametrize("chunks", [(256, 1024), (256, 1024, 4096), (256, 2048)])
def test_levels(host: BlockHost, chunks: tuple[int, ...], horizon: int) -> None:
    chunks = tuple(chunk for chunk in chunks if 2 * chunk <= horizon)
    check(host, whole(4500, horizon, channels=1, groups=1, chunks=chunks, decay=2.0))


def test_packed_levels(host: BlockHost) -> None:
    cuts = [0, 300, 300, 3000, 5200]
    check(host, BlockCase(True, 5200, cuts[:-1], cuts[1:], 2, 1, 2600, chunks=(256, 1024), decay=2.0))


@pytest.mark.slow
@pytest.mark.parametrize("horizon", [40_000, 65_536])
def test_long_sequences(host: BlockHost, horizon: int) -> None:
    check(host, whole(65_536, horizon, channels=1, groups=1, terms=16))


def in_runs(packed: bool, dtype: torch.dtype) -> BlockCase:
    """A call whose backward pass is cut into runs, because it needs many moments and computes no row gradients."""
    needs = frozenset({"out", "coefficients", "decay", "skip"})
    return BlockCase(packed, 900, [0, 100, 400], [100, 400, 900], 10, 2, 800, dtype, needs=needs, terms=16, decay=2.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packed", [False, True])
def test_a_call_in_runs(host: BlockHost, packed: bool, dtype: torch.dtype) -> None:
    """A call can be cut into runs of sequences and of channels; the parameters' gradients are sums over runs."""
    case, cut = in_runs(packed, dtype), host.cut(700)
    arguments = case.arguments(case.results())
    assert cut.workspace(arguments, True) < host.workspace(arguments, True)
    check(cut, case)


def one_pass(packed: bool, horizon: int = 4000, dtype: torch.dtype = torch.float32, **options: Any) -> BlockCase:
    """A call with four rounds of four tiles; in padded input, one sequence begins inside a round."""
    cuts = [0, 300, 300, 1900, 3100]
    starts, ends = (cuts[:-1], cuts[1:]) if packed else ([0, 0], [1700, 1500])
    options |= {"max_length": 1600} if packed else {}
    return BlockCase(
        packed, ends[-1] if packed else 1700, starts, ends, 3, 3, horizon, dtype, terms=16, decay=2.0, **options
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("horizon", [1600, 4000])  # the filter's end lies inside sequences, or beyond them
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_a_block_that_makes_moments_itself(
    blocks: int, packed: bool, horizon: int, dtype: torch.dtype, host: BlockHost
) -> None:
    """One pass in which blocks compute moments themselves gives bit for bit what two passes give."""
    case, few = one_pass(packed, horizon, dtype, needs=frozenset({"out"})), host.in_blocks(blocks)
    launched: list[bytes] = []
    types = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int, ctypes.c_int]
    count = ctypes.CFUNCTYPE(ctypes.c_bool, *types)(lambda type, *_: bool(launched.append(type)))  # false: run it here
    host.library.host_emulate(count)
    try:
        expected, passes = case.run(host)["out"], len(launched)
        assert torch.equal(case.run(few)["out"], expected)
    finally:
        host.library.host_emulate(None)
    assert len(launched) - passes == passes - 1


@pytest.mark.parametrize("packed", [False, True])
def test_gradients_of_a_few_blocks(packed: bool, host: BlockHost) -> None:
    check(host.in_blocks(2), one_pass(packed, 1300, torch.bfloat16))


@pytest.mark.parametrize("horizon", [600, 100])
def test_the_order_of_threads_changes_nothing(host: BlockHost, horizon: int) -> None:
    case = borders(horizon)
    backwards = case.run(host, reversed=True)
    for name, value in case.run(host).items():
        assert torch.equal(value, backwards[name]), name


@pytest.mark.parametrize("horizon", [700, 1500])
def test_causality(host: BlockHost, horizon: int) -> None:
    """Later rows change no earlier output, bit for bit."""
    case = whole(1400, horizon, dtype=torch.bfloat16, needs=frozenset(["out"]))
    before = case.run(host)["out"]
    case.tensors["x"][:, 1000:] = 5.0
    after = case.run(host)["out"]
    assert torch.equal(before[:, :1000], after[:, :1000]) and not torch.equal(before, after)


def test_nan_stays_in_its_channel_and_sequence(host: BlockHost) -> None:
    case = BlockCase(True, 1200, [0, 300, 900], [300, 900, 1200], 5, 5, 2000)
    before = case.run(host)
    case.tensors["x"][310, 3] = torch.nan
    after = case.run(host)
    elsewhere = torch.ones(1200, 5, dtype=torch.bool)
    elsewhere[300:900, 3] = False
    for name in ("out", "x", "pre_gate", "post_gate"):
        assert torch.equal(before[name][elsewhere], after[name][elsewhere]), name
    assert after["out"][310:900, 3].isnan().all()


@pytest.mark.parametrize("lie", LYING)
def test_sequences_that_do_not_cover_the_rows(host: BlockHost, lie: str) -> None:
    """With wrong starts and ends, nothing outside the tensors is read or written, and rows of no sequence become 0."""
    cuts = LYING[lie]
    case = BlockCase(True, 300, [0] * (len(cuts) - 1), [300] * (len(cuts) - 1), 3, 3, 270)
    case.tensors |= {"starts": torch.tensor(cuts[:-1]), "ends": torch.tensor(cuts[1:])}
    found = case.run(host)
    for name, value in found.items():
        assert value.isfinite().all(), f"{name}: {int((~value.isfinite()).sum())} values were not written"
    inside = torch.zeros(300, dtype=torch.bool)
    for start, end in pairwise(cuts):
        inside[max(start, 0) : max(end, 0)] = True
    assert not found["out"][~inside].any() and not found["x"][~inside].any()


@pytest.mark.parametrize(("sequences", "rows", "packed"), [(0, 5, False), (3, 0, False), (0, 0, True), (2, 0, True)])
def test_no_rows(host: BlockHost, sequences: int, rows: int, packed: bool) -> None:
    """Without rows, the parameters' gradients are zero instead of unwritten."""
    case = BlockCase(packed, rows, [0] * sequences, [0 if packed else rows] * sequences, 3, 3, 700, decay=1.0)
    for name, value in case.run(host).items():
        assert not value.any() and value.isfinite().all(), name


def test_offsets_beyond_32_bits(host: BlockHost) -> None:
    case = whole(11, 5)
    expected = case.run(host)
    case.tensors["x"] = far_rows(case.tensors["x"])
    for name, value in case.run(host).items():
        assert torch.equal(value, expected[name]), name


# Constants that are made wrong, one part at a time, in a call with two levels and a window.
PARTS = ["basis", "down", "columns", "samples", "aged", "offsets", "transfers"]


@pytest.mark.parametrize("part", PARTS)
def test_wrong_constants_show(host: BlockHost, part: str) -> None:
    case = whole(2100, 2100, channels=1, groups=1, chunks=(256, 1024), decay=5.0)
    below, above = case.plan.levels
    held = constants(case.plan, True, torch.device("cpu")).clone()
    rows = 768 + sum(len(level.distances) * level.rank**2 for level in case.plan.levels)
    sizes = [256 * 16, 4 * 16 * 16, 64 * 16, rows * case.terms, rows * case.terms, rows]
    sizes.append(below.fan * below.rank * above.rank)
    assert sum(sizes) == held.numel()
    parts = dict(zip(PARTS, held.split(sizes), strict=True))
    parts[part][parts[part].numel() // 2 :] *= 1.5
    case.held = held
    assert wrong(case, case.run(host))


def test_workspace(host: BlockHost) -> None:
    """A large call is cut into runs, so that its workspace is at most 15% of its outputs plus a constant (40 MiB)."""
    for backward, outputs in ((False, 1), (True, 3)):
        sizes = []
        for count in (256, 512):
            case = whole(2, 4096, terms=16, channels=256, groups=256, dtype=torch.bfloat16)
            args = case.arguments(case.results())
            args.rows = args.max_length = 4096
            args.sequences = count
            sizes.append(host.workspace(args, backward))
        output = 256 * 4096 * 256 * 2 * outputs
        assert sizes[1] <= 0.15 * 2 * output + (40 << 20)
        assert sizes[1] - sizes[0] <= 0.15 * output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("horizon", [513, 1024, 16_384, pytest.param(1 << 20, marks=pytest.mark.slow)])
def test_plans(horizon: int, dtype: torch.dtype) -> None:
    for terms in (16, 32):
        plan = plan_for(terms, horizon, True, False, dtype)
        assert plan is not None and 0 < plan.bound <= BOUND[dtype]
        assert all(level.rank <= 32 for level in plan.levels) and len(plan.levels) <= 8


@pytest.mark.parametrize(("horizon", "levels"), [(4096, 1), (16_384, 2), (65_536, 2)])
def test_a_plan_has_few_distances(horizon: int, levels: int) -> None:
    """Every level has fewer than 32 distances: at rank 6, 63 distances on one level would take longer than another
    level, because a pair of tiles costs more than its products."""
    plan = plan_for(16, horizon, False, False, torch.bfloat16)
    assert plan is not None and len(plan.levels) == levels
    assert max(len(level.distances) for level in plan.levels) < 32


@pytest.fixture(scope="session")
def race(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bool]:
    """Runs calls of tests/native/blocks_race_test.cpp."""
    needs("g++")
    return race_program("blocks_race_test.cpp", tmp_path_factory.mktemp("cuda_blocks") / "race_test", "-O1")


@pytest.mark.slow  # 20 s each
@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize(
    ("horizon", "levels"), [(300, 0), (600, 2), (600, 1)]
)  # with one level, blocks compute moments themselves
def test_no_races(layout: str, horizon: int, levels: int, race: Callable[..., bool]) -> None:
    assert not race(layout, horizon, levels)


@pytest.mark.slow
@pytest.mark.parametrize(("barrier", "levels"), [(0, 2), (1, 2), (2, 2), (3, 1), (4, 1)])
def test_a_dropped_barrier_is_a_race(barrier: int, levels: int, race: Callable[..., bool]) -> None:
    # ThreadSanitizer remembers only a few accesses per place, so a run on a busy machine may miss the race
    assert any(race("packed", 600, levels, dropped=barrier) for _ in range(5))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="cuobjdump comes with triton")
@pytest.mark.parametrize("architecture", [80, 86, 89, 90, 100, 120])
@pytest.mark.parametrize("part", ["", "_bf16", "_f16", "_f32"])
def test_compiled_for_the_device_without_spills(part: str, architecture: int, tmp_path: Path) -> None:
    """No register spills, which would need a stack frame. A multiprocessor's registers suffice for two blocks, or for
    one where the sums of pairs that the filter's end cuts stay in registers, in float32, which takes twice as many, and
    where shared memory suffices for only one (kBlocks)."""
    needs("nvcc")
    binary = tmp_path / "blocks.o"
    command = [
        "nvcc",
        "-O3",
        "-std=c++17",
        f"-arch=sm_{architecture}",
        "-c",
        str(SOURCE / f"cuda/kernels_blocks{part}.cu"),
    ]
    subprocess.run([*command, "-o", str(binary)], check=True)
    used = resources(binary)
    assert len(used) == {"": 5, "_f32": 8}.get(part, 9)
    assert not {name: usage for name, usage in used.items() if usage["STACK"] or usage["LOCAL"]}
    alone = ("ConvolveTilesBackward", "CorrelateTiles") if part == "_f32" else ("ConvolveTilesBackward.*Lb1E",)
    alone += ("ConvolveTiles",) if architecture in (86, 89, 120) else ()
    for (name, _), usage in used.items():
        assert usage["REG"] <= (255 if re.search("|".join(alone), name) else 128), name


# Mutations of the shipped source, one place each: the file, the text there, and its replacement.
MUTATIONS = {
    "the tile's last column": ("block_columns.h", "kReach = kTileColumns - 1", "kReach = kTileColumns - 2"),
    "the edge's second pair": ("block_columns.h", "(edge + 1) * kTileColumns", "(edge + 1) * kTileColumns - edge"),
    "the end of the horizon": ("block_parameters.h", "at >= to.rows) return 0.f", "at > to.rows) return 0.f"),
    "the second plane": ("block_parameters.h", "plane ? all - float(T::of(all)) : all", "all"),
    "the window on the way out": ("block_moments.h", "kTile - row : row)", "kTile - row : row + 1)"),
    "the window on the way up": (
        "block_levels.h",
        "? j : below.fan - 1 - j",
        "? below.fan - 1 - j : j",
    ),
    "a pair at the filter's end": ("block_levels.h", "distance >= far_first + place", "distance > far_first + place"),
    "the second pair's gradient": ("block_backward.h", "edge > 0 || round != share", "round != share"),
    "rows past the end": ("block_columns.h", "slot.length, written", "slot.length + 1, written"),
    "a share's later tiles": ("block_levels.h", "i += int64_t(shares)", "i += 2 * int64_t(shares)"),
    "a half of a tap's sum": ("toeplitz.h", "lane % 2 ? second : first,", "first,"),
    "the first tile that is met": ("block_forward.h", "(begin * kRoundTiles - back) / kRoundTiles", "begin"),
    "a rounded basis": ("block_schedule.h", "tile_moments<kFinePlanes<T>>", "tile_moments<1>"),
    "a later run's sums": ("block_schedule.h", "a_.dcoefficients, add_)", "a_.dcoefficients, false)"),
}


@pytest.mark.slow  # each takes 10 s to compile
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_kernel_shows(mutation: str, tmp_path: Path) -> None:
    needs("g++")
    source = mutated(tmp_path, *MUTATIONS[mutation])
    broken = block_host(tmp_path / "broken.so", source=source)
    cases: list[Callable[[], BlockCase]] = [
        lambda: borders(511),
        lambda: whole(4500, 3000, channels=1, groups=1, chunks=(256, 1024), decay=2.0),
        *(lambda seed=seed: random_case(seed) for seed in (*range(20), FAST_WINDOW)),  # type: ignore[misc]
    ]
    cut, one = in_runs(False, torch.float32), one_pass(False)
    assert (
        any(wrong(case, case.run(broken)) for case in (make() for make in cases))
        or wrong(cut, cut.run(broken.cut(700)))
        or wrong(one, one.run(broken.in_blocks(3)))
    )
