"""The Toeplitz programs of csrc/cuda without a GPU: the shipped source compiled for the host and run lane by lane, and
nvcc's output inspected."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_host import far_rows, mutated, needs, toeplitz_library, wrong
from cuda_ops import race_program
from test_cuda_host import LYING, resources
from toeplitz_host import ToeplitzCase, check, random_case

from benchmarks.gpu.host_library import SCARCE_SHARED, SOURCE, ToeplitzHost, toeplitz_host

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> ToeplitzHost:
    return ToeplitzHost(toeplitz_library(tmp_path_factory))


def one(rows: int, taps: int, dtype: torch.dtype = torch.float32, **options: object) -> ToeplitzCase:
    """A call on a padded batch in which both sequences fill their rows."""
    settings: dict[str, object] = {"channels": 10, "groups": 5, "full": True} | options
    return ToeplitzCase(False, rows, [0, 0], [rows, rows], taps=taps, dtype=dtype, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [*range(24), *(pytest.param(s, marks=pytest.mark.slow) for s in range(24, 150))])
def test_random_calls(host: ToeplitzHost, seed: int) -> None:
    check(host, random_case(seed, 700, 512))


@pytest.mark.parametrize("seed", [103, 129])
def test_a_row_left_out_of_a_sum_that_nearly_cancels_shows(host: ToeplitzHost, seed: int) -> None:
    """Skip's gradient is 5% or 9% of what random signs would lead one to expect. An error of one row's size is noticed
    all the same, in bfloat16 and in float32."""
    case = random_case(seed, 700, 512)
    found, expected, squares = case.run(host), case.expected()["skip"], case.squares()["skip"]
    assert expected.norm() < 0.1 * squares.sum().sqrt() and not wrong(case, found)
    found["skip"][0] += float((squares[0] / case.rows).sqrt())
    assert list(wrong(case, found)) == ["skip"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_sequences_as_long_as_columns_and_rounds(host: ToeplitzHost, dtype: torch.dtype) -> None:
    """Packed sequences may be as long as columns and rounds, or one row longer or shorter. The longest take more than
    one round, and need the halo before and after it."""
    cuts = np.cumsum([0, 64, 0, 63, 65, 1, 128, 1024, 960, 1025, 7]).tolist()
    check(host, ToeplitzCase(True, cuts[-1], cuts[:-1], cuts[1:], 3, 3, 200, dtype))


@pytest.mark.parametrize(
    ("rows", "taps"), [(1, 1), (1, 512), (64, 1), (65, 512), (200, 200), (1024, 65), (1025, 512), (2051, 512)]
)
def test_lengths(host: ToeplitzHost, rows: int, taps: int) -> None:
    check(host, one(rows, taps, channels=2, groups=1))


@pytest.mark.parametrize("channels", [8, 16, 24, 40])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_are_moved_16_bytes_at_a_time(host: ToeplitzHost, dtype: torch.dtype, channels: int) -> None:
    """Aligned tensors, whose rows are moved 16 bytes at a time, give the same bits as one value at a time."""
    slow = one(130, 70, dtype, channels=channels, groups=channels)
    fast = dataclasses.replace(slow)
    for name in ("x", "pre_gate", "post_gate", "grad"):
        fast.tensors[name] = slow.tensors[name].contiguous()
        assert fast.tensors[name].data_ptr() % 16 == 0
    check(host, fast)
    expected = slow.run(host)
    for name, value in fast.run(host).items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.slow
def test_with_less_shared_memory(tmp_path: Path) -> None:
    """If shared memory cannot hold two pools of 32 bytes of channels, 16 bytes of channels are taken at a time."""
    needs("g++")
    scarce = toeplitz_host(tmp_path / "scarce.so", shared=SCARCE_SHARED)
    for dtype in DTYPES:
        check(scarce, one(1100, 512, dtype, channels=20, groups=20))


@pytest.mark.parametrize("lie", LYING)
def test_sequences_that_do_not_cover_the_rows(host: ToeplitzHost, lie: str) -> None:
    """With wrong starts and ends, nothing outside the tensors is read or written, and every row is overwritten."""
    cuts = LYING[lie]
    honest = ToeplitzCase(True, 300, [0], [300], 6, 3, 90)
    case = dataclasses.replace(honest, starts=[0] * (len(cuts) - 1), ends=[300] * (len(cuts) - 1))
    case.tensors |= {"starts": torch.tensor(cuts[:-1]), "ends": torch.tensor(cuts[1:])}
    for reversed in (False, True):
        for name, value in case.run(host, reversed=reversed).items():
            assert value.isfinite().all(), f"{name}: {int((~value.isfinite()).sum())} values were not written"
    inside = torch.zeros(300, dtype=torch.bool)
    for start, end in pairwise(cuts):
        inside[max(start, 0) : max(end, 0)] = True
    assert not case.run(host)["out"][~inside].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_stays_in_its_channel_and_sequence(host: ToeplitzHost, dtype: torch.dtype) -> None:
    case = ToeplitzCase(True, 200, [0, 70, 81], [70, 81, 200], 5, 5, 90, dtype)
    before = case.run(host)
    case.tensors["x"][75, 3] = torch.nan
    after = case.run(host)
    elsewhere = torch.ones(200, 5, dtype=torch.bool)
    elsewhere[70:81, 3] = False
    for name in ("out", "x", "pre_gate", "post_gate"):
        assert torch.equal(before[name][elsewhere], after[name][elsewhere]), name
    assert after["out"][75:81, 3].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_causality_bit_for_bit(host: ToeplitzHost, dtype: torch.dtype) -> None:
    case = one(300, 200, dtype)
    before = case.run(host)["out"]
    case.tensors["x"][:, 117:] *= -3
    after = case.run(host)["out"]
    assert torch.equal(before[:, :117], after[:, :117]) and not torch.equal(before[:, 117:], after[:, 117:])


def test_offsets_beyond_32_bits(host: ToeplitzHost) -> None:
    case = one(11, 5, channels=2, groups=2)
    case.tensors = {name: value[:1] if value.dim() == 3 else value for name, value in case.tensors.items()}
    case.starts, case.ends = [0], [11]
    expected = case.run(host)
    case.tensors["x"] = far_rows(case.tensors["x"])
    for name, value in case.run(host).items():
        assert torch.equal(value, expected[name]), name


@pytest.fixture(scope="session")
def race(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bool]:
    """Runs calls of tests/native/legendre_race_test.cpp."""
    needs("g++")
    return race_program("legendre_race_test.cpp", tmp_path_factory.mktemp("toeplitz") / "race_test")


@pytest.mark.slow  # 30 s
@pytest.mark.parametrize("what", ["rows", "last"])
def test_no_races(what: str, race: Callable[..., bool]) -> None:
    assert not race(what)


@pytest.mark.slow
@pytest.mark.parametrize("barrier", [1, 2, 3])
def test_a_dropped_barrier_is_a_race(barrier: int, race: Callable[..., bool]) -> None:
    # ThreadSanitizer remembers only a few accesses per place, so a run on a busy machine may miss the race
    assert any(race("rows", dropped=barrier) for _ in range(5))


# Mutations of the shipped source, one place each: the file, the text there, and its replacement.
MUTATIONS = {
    "a word of the taps' table": ("toeplitz.h", "packed<T>(tap(lag), tap(lag - 1))", "packed<T>(tap(lag), tap(lag))"),
    "a lane's word": ("tensor_core.h", "kHalf * (w / 2)", "kHalf * (w % 2)"),
    "rows of the transpose": ("tensor_core.h", "matrix[2 * q + 1][g]", "matrix[2 * q][g]"),
    "the reach of a column": ("toeplitz.h", "<= view.reach[column];", "< view.reach[column];"),
    "the halo": ("columns.h", "least(here.number, column + halo)", "least(here.number, column)"),
    "rows past the end": ("columns.h", "0 : span.length - position;", "0 : 4;"),
    "later rounds": ("toeplitz.h", "add ? sums[at] + sum : sum", "sum"),
    "a diagonal": ("toeplitz.h", "lane / 4 >= s ? here[", "lane / 4 > s ? here["),
    "a group's channels": ("taps.h", "for (int c = 0; c < members; ++c) sum", "for (int c = 0; c < 1; ++c) sum"),
    "the window": ("taps.h", "* float(lag));\n  }", "* float(lag + 1));\n  }"),
    "small parts of floats": ("tensor_core.h", "    multiply_tf32(c, rest_a, top_b);\n", ""),
}
FIRST, *OTHERS = MUTATIONS  # each takes 2 s to compile


@pytest.mark.parametrize("mutation", [FIRST, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_a_broken_kernel_shows(mutation: str, tmp_path: Path) -> None:
    needs("g++")
    source = mutated(tmp_path, *MUTATIONS[mutation])
    broken = toeplitz_host(tmp_path / "broken.so", 4, source=source)
    cases = [one(1100, 200, dtype) for dtype in DTYPES]
    cases += [random_case(seed, 500, 300) for seed in range(30)]
    assert any(wrong(case, case.run(broken)) for case in cases)


SLOW = [pytest.param(architecture, marks=pytest.mark.slow) for architecture in (80, 86, 89, 90, 100, 120)]


@pytest.mark.skipif(find_spec("triton") is None, reason="cuobjdump comes with triton")
@pytest.mark.parametrize("architecture", SLOW)
def test_compiled_for_the_device_without_spills(architecture: int, tmp_path: Path) -> None:
    """No register spills, which would need a stack frame. Tensor cores multiply, and rows move 16 bytes at a time."""
    needs("nvcc")
    binary = tmp_path / "toeplitz.o"
    command = ["nvcc", "-O3", "-std=c++17", f"-arch=sm_{architecture}", "-c", str(SOURCE / "cuda/kernels_toeplitz.cu")]
    subprocess.run([*command, "-o", str(binary)], check=True)
    used = resources(binary)
    products = {name: usage for (name, _), usage in used.items() if "ToeplitzConv" in name}
    assert len(products) == 6 and len(used) == 9
    assert not {name: usage for name, usage in used.items() if usage["STACK"] or usage["LOCAL"]}
    # a multiprocessor's registers suffice for two blocks, or one of Float32's backward pass
    for name, usage in products.items():
        blocks = 1 if "Lb1" in name and "Float32" in name else 2
        assert usage["REG"] * 256 * blocks <= 65536, (name, usage)
