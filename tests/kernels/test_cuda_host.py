"""The CUDA programs without a GPU: the shipped source compiled for the host and run thread by thread, and nvcc's output
inspected."""

from __future__ import annotations

import dataclasses
import os
import re
import runpy
import subprocess
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import setuptools
import torch
from cuda_host import (
    Host,
    HostCase,
    check,
    compile_host,
    far_rows,
    host_library,
    mutated,
    needs,
    one,
    random_case,
    wrong,
)
from cuda_ops import ROOT, race_program

from benchmarks.gpu.host_library import SOURCE


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    """Programs with blocks of every size."""
    return Host(host_library(tmp_path_factory), 14)


@pytest.fixture(scope="session")
def scarce(tmp_path_factory: pytest.TempPathFactory) -> Host:
    """Programs with the block sizes for devices that have 99 KiB of shared memory per block."""
    return Host(host_library(tmp_path_factory), 10)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Host:
    """Programs with blocks of at most 128 rows: longer filters are cut into parts, and a block takes several items."""
    return Host(host_library(tmp_path_factory), 7)


def sizes_of_buckets() -> HostCase:
    """Packed sequences as long as blocks, or one row longer or shorter."""
    cuts = np.cumsum([0, 32, 64, 128, 33, 1, 0, 31, 65, 256, 0]).tolist()
    return HostCase(True, cuts[-1], cuts[:-1], cuts[1:], 6, 3, 100)


@pytest.mark.parametrize("library", ["host", "scarce", "small"])
def test_sequences_as_long_as_blocks(library: str, request: pytest.FixtureRequest) -> None:
    check(request.getfixturevalue(library), sizes_of_buckets())


@pytest.mark.parametrize("seed", range(40))
def test_random_calls(host: Host, seed: int) -> None:
    check(host, random_case(seed, 500, 700))


@pytest.mark.parametrize("seed", range(100, 140))
def test_random_calls_in_small_blocks(small: Host, seed: int) -> None:
    check(small, random_case(seed, 500, 700))


@pytest.mark.parametrize("rows", [1, 31, 33, 127, 257, 769, 1031, 2049, 4099, 8209, 16381])
def test_every_size(host: Host, rows: int) -> None:
    """Prime and odd lengths, which together use every block size, are within the float32 bound."""
    check(host, one(rows, rows, channels=18 if rows < 1000 else 2))


@pytest.mark.parametrize(("rows", "taps"), [(1300, 512), (2500, 33), (4099, 1024), (20011, 16384), (17000, 17000)])
def test_sequences_of_many_blocks(host: Host, rows: int, taps: int) -> None:
    """Up to the most taps that a block takes, each block needs its neighbour; longer filters are cut into parts."""
    check(host, one(rows, taps, channels=1, groups=1))


@pytest.mark.parametrize(("rows", "taps"), [(1025, 1024), (4099, 4099), (9001, 3000), (20011, 1025)])
def test_with_less_shared_memory(scarce: Host, rows: int, taps: int) -> None:
    check(scarce, one(rows, taps))


LYING = {
    "to short of the rows": [0, 100, 250],
    "past the rows": [0, 100, 900],
    "from behind the first row": [40, 100, 300],
    "from before the first row": [-50, 100, 300],
    "decreasing": [0, 200, 50, 300],
    "decreasing often": [0, 300, 0, 300, 0, 300, 0, 300],
    "all at the end": [300, 300, 300],
    "turned round": [300, 200, 0],
    "no sequence": [0],
}


@pytest.mark.parametrize("taps", [20, 200])  # in one block, and cut into parts
@pytest.mark.parametrize("lie", LYING)
def test_sequences_that_do_not_cover_the_rows(small: Host, lie: str, taps: int) -> None:
    """With wrong starts and ends, nothing outside the tensors is read or written, and every row is overwritten."""
    cuts = LYING[lie]
    honest = HostCase(True, 300, [0], [300], 6, 3, taps)
    case = dataclasses.replace(honest, starts=[0] * (len(cuts) - 1), ends=[300] * (len(cuts) - 1))
    case.tensors |= {"starts": torch.tensor(cuts[:-1]), "ends": torch.tensor(cuts[1:])}
    for reversed in (False, True):
        for name, value in case.run(small, reversed=reversed).items():
            assert value.isfinite().all(), f"{name}: {int((~value.isfinite()).sum())} values were not written"
    inside = torch.zeros(300, dtype=torch.bool)
    for start, end in pairwise(cuts):
        inside[max(start, 0) : max(end, 0)] = True
    assert not case.run(small)["out"][~inside].any()


@pytest.mark.parametrize(
    ("lengths", "longest", "sizes"),
    [
        ([300], 300, 1),  # one sequence has all the rows
        ([1], 1, 1),
        ([40, 40, 40], 40, 1),  # three sequences of at most 40 rows make 120
        ([100, 128, 70], 128, 2),  # each has at least 298 - 2 * 128 = 42 rows
        ([100, 128, 70], 298, 3),  # blocks of 32, 64 and 128 rows
    ],
)
def test_only_sizes_that_sequences_can_have_are_launched(
    small: Host, lengths: list[int], longest: int, sizes: int
) -> None:
    cuts = np.cumsum([0, *lengths]).tolist()
    case = HostCase(True, cuts[-1], cuts[:-1], cuts[1:], 4, 2, 100, max_length=longest)
    check(small, case)
    assert (
        small.launches(case.arguments(case.results()), False) == 1 + 2 * sizes
    )  # one launch lists the sequences of each size; then two for each size: the filter's spectrum, the convolution


@pytest.mark.parametrize("log", range(5, 15))
def test_no_bank_conflicts(host: Host, log: int) -> None:
    assert host.library.host_bank_conflicts(log) == 1


@pytest.mark.parametrize(("sequences", "rows", "packed"), [(0, 5, False), (3, 0, False), (0, 0, True), (2, 0, True)])
def test_no_rows(host: Host, sequences: int, rows: int, packed: bool) -> None:
    """Without rows, the parameters' gradients are zero instead of unwritten."""
    case = HostCase(packed, rows, [0] * sequences, [0 if packed else rows] * sequences, 3, 3, 4)
    for name, value in case.run(host).items():
        assert not value.any() and value.isfinite().all(), name


def test_nan_stays_in_its_channel_and_sequence(small: Host) -> None:
    case = HostCase(True, 200, [0, 70, 81], [70, 81, 200], 5, 5, 90)
    before = case.run(small)
    case.tensors["x"][75, 3] = torch.nan
    after = case.run(small)
    elsewhere = torch.ones(200, 5, dtype=torch.bool)
    elsewhere[70:81, 3] = False
    for name in ("out", "x", "pre_gate", "post_gate"):
        assert torch.equal(before[name][elsewhere], after[name][elsewhere]), name
    assert after["out"][75:81, 3].isnan().all()


def test_offsets_beyond_32_bits(small: Host) -> None:
    case = one(11, 5)
    expected = case.run(small)
    case.tensors["x"] = far_rows(case.tensors["x"])
    for name, value in case.run(small).items():
        assert torch.equal(value, expected[name]), name


@pytest.fixture(scope="session")
def race(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bool]:
    """Runs calls of tests/native/race_test.cpp with blocks of at most 512 rows, whose FFT has two passes before the
    last, as larger ones have."""
    needs("g++")
    flags = ("-DHYENAREC_TOP=9", "-O1")  # it runs longer than it compiles
    return race_program("race_test.cpp", tmp_path_factory.mktemp("cuda_host") / "race_test", *flags)


# in one block, and cut into parts
@pytest.mark.slow  # 45 s
@pytest.mark.parametrize(("layout", "taps", "groups"), [("padded", 400, 3), ("padded", 400, 9), ("packed", 700, 9)])
def test_no_races(layout: str, taps: int, groups: int, race: Callable[..., bool]) -> None:
    assert not race(layout, taps, groups)


@pytest.mark.slow
@pytest.mark.parametrize("barrier", [1, 2, 3, 4])
def test_a_dropped_barrier_is_a_race(barrier: int, race: Callable[..., bool]) -> None:
    # ThreadSanitizer remembers only a few accesses per place, so a run on a busy machine may miss the race
    assert any(race("padded", 400, 9, dropped=barrier) for _ in range(5))


# Mutations of the shipped source, one place each: the file, the text there, and its replacement.
MUTATIONS = {
    "a quarter of a twiddle": ("fft.h", "unit(-0.25f * half_turns)", "unit(0.25f * half_turns)"),
    "a high twiddle": ("fft.h", "high = k == 4 ? four", "high = k == 4 ? low[3]"),
    "rows past the end": ("rows.h", "stride < remaining", "stride <= remaining"),
    "the neighbour's side": ("convolve.h", "= float(round.history) * v", "= -float(round.history) * v"),
    "a share's later items": ("convolve.h", "first_item ? product : partial[at] + product", "product"),
    "the filter's windows": ("filter.h", "Complex{-next.y, next.x}", "Complex{next.y, -next.x}"),
    "a group's channels": ("sums.h", "d < (group + 1) * each_group", "d < (group + 1) * each_group - 1"),
    "a share without an item": ("sums.h", "items.size() < shares ? items.size()", "false ? 0"),
    "a bucket's bound": ("buckets.h", "length <= bucket.above", "length < bucket.above"),
}


FIRST, *OTHERS = MUTATIONS  # each takes 3 s to compile


@pytest.mark.parametrize("mutation", [FIRST, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_a_broken_kernel_shows(mutation: str, tmp_path: Path) -> None:
    needs("g++")
    source = mutated(tmp_path, *MUTATIONS[mutation])
    compile_host(tmp_path / "broken.so", 7, source)
    broken = Host(tmp_path / "broken.so", 7)
    cases = [sizes_of_buckets(), *(random_case(seed, 300, 300) for seed in range(100, 140))]
    assert any(wrong(case, case.run(broken)) for case in cases)


def cuobjdump() -> str:
    return str(Path(str(import_module("triton").__path__[0])) / "backends/nvidia/bin/cuobjdump")


def resources(binary: Path) -> dict[tuple[str, str], dict[str, int]]:
    """The resources that each kernel of a binary uses on each architecture in it, under cuobjdump's names."""
    command = [cuobjdump(), "--dump-resource-usage", str(binary)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {}
    for part in re.split(r"^arch = ", text, flags=re.MULTILINE)[1:]:
        architecture = part.split(maxsplit=1)[0]
        for name, usage in re.findall(r"^ Function (\w+):\n\s+(\S.*)$", part, re.MULTILINE):
            counts = re.findall(r"(\w+):(\d+)", usage)
            found[name, architecture] = {what: int(count) for what, count in counts}
    return found


# Kernels of the FFT in its ten sizes, without a size, of Toeplitz products, of the block form, of the short
# convolutions, and of a mixer's parameters.
KERNELS = 3 * 10 + 6 + 9 + 31 + 16 + 1


def check_no_spills(used: dict[tuple[str, str], dict[str, int]]) -> None:
    """No kernel has a stack frame, so no register spills."""
    assert used and not {name: usage for name, usage in used.items() if usage["STACK"] or usage["LOCAL"]}


@pytest.mark.skipif(find_spec("triton") is None, reason="cuobjdump comes with triton")
@pytest.mark.skipif("HYENAREC_CUDA_ARCHS" in os.environ, reason="HYENAREC_CUDA_ARCHS is set")
def test_compiled_for_the_device_without_spills(tmp_path: Path) -> None:
    """This environment's extension holds every kernel as PTX, which GPUs translate. None of the kernels that compile
    quickly spills: a third of all, with all types of Toeplitz products. `make test-all` compiles all kernels."""
    needs("nvcc")
    spec = find_spec("hyenarec_kernels._C")
    assert spec is not None and spec.origin is not None
    command = [cuobjdump(), "--extract-ptx", "all", spec.origin]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    programs = "".join(path.read_text() for path in tmp_path.glob("*.ptx"))
    held = set(re.findall(r"\.entry (\w+)\(", programs))
    compiled = set()
    for name in ("kernels_blocks", "kernels_small", "kernels_toeplitz", "parameters"):
        binary = tmp_path / f"{name}.fatbin"
        command = ["nvcc", "-std=c++17", "-arch=sm_80", "-fatbin", SOURCE / f"cuda/{name}.cu", "-o", binary]
        subprocess.run([*map(str, command)], check=True)
        used = resources(binary)
        check_no_spills(used)
        compiled |= {name for name, _ in used}
    assert len(held) == KERNELS and len(compiled) >= KERNELS // 3 and compiled <= held
    assert len([name for name in compiled if "ToeplitzConv" in name]) == 6


@pytest.mark.slow  # 90 s
@pytest.mark.skipif(find_spec("triton") is None, reason="cuobjdump comes with triton")
def test_wheels_are_compiled_for_the_device_without_spills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel spills on the architectures that setup.py compiles for by default."""
    needs("nvcc")
    monkeypatch.setattr(setuptools, "setup", lambda **options: None)
    program = runpy.run_path(str(ROOT / "setup.py"))
    used: dict[tuple[str, str], dict[str, int]] = {}
    for source in SOURCE.glob("cuda/*.cu"):
        binary = tmp_path / f"{source.stem}.o"
        command = ["nvcc", "-O3", "-std=c++17", *program["cuda_targets"](program["CUDA_ARCHS"]), "-c", source, "-o"]
        subprocess.run([*map(str, command), str(binary)], check=True)
        used |= resources(binary)
    assert {architecture for _, architecture in used} == {"sm_80", "sm_90"} and len(used) == 2 * KERNELS
    check_no_spills(used)


@pytest.mark.skipif(find_spec("triton") is None, reason="cuobjdump comes with triton")
def test_a_spill_is_seen(tmp_path: Path) -> None:
    needs("nvcc")
    source, binary = tmp_path / "spill.cu", tmp_path / "spill.o"
    source.write_text(
        "__global__ void spills(float* p, int n) { float v[64]; for (int i = 0; i < 64; ++i) v[i] = p[i];"
        " p[n] = v[n] + v[n / 2]; }"
    )
    subprocess.run(["nvcc", "-c", "-arch=sm_90", "-maxrregcount=16", str(source), "-o", str(binary)], check=True)
    (usage,) = resources(binary).values()
    assert usage["STACK"] > 0
