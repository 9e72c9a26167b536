"""Calls of csrc/cuda without torch or a GPU: the structs that they take, and libraries of tests/native, in which the
shipped programs are compiled for the host."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gpu.machine import ROOT

SOURCE, NATIVE = ROOT / "csrc", ROOT / "tests" / "native"
DTYPES = {torch.float32: 0, torch.bfloat16: 2, torch.float16: 3}  # hyenarec::Dtype
MOST_LEVELS = 8
FULL_SHARED, SCARCE_SHARED = 227 << 10, 99 << 10  # bytes per block: on compute capability 9.0, and on 8.6, 8.9, 12.0
WHOLE = 1 << 24  # fewest elements of a run of the block form
PASS_BLOCKS = 528  # most blocks of a pass of it (kPassBlocks)


class RowsArgument(ctypes.Structure):
    """hyenarec::Rows."""

    _fields_ = [("data", ctypes.c_void_p), ("batch_stride", ctypes.c_int64), ("row_stride", ctypes.c_int64)]

    @classmethod
    def of(cls, t: Tensor | None) -> RowsArgument:
        if t is None:
            return cls()
        return cls(t.data_ptr(), t.stride(0) if t.dim() == 3 else 0, t.stride(-2))


class LongConvArguments(ctypes.Structure):
    """hyenarec::LongConvArgs."""

    _fields_ = [
        ("dtype", ctypes.c_int),
        ("packed", ctypes.c_bool),
        *((name, ctypes.c_int64) for name in ("sequences", "rows", "channels", "groups", "taps", "max_length")),
        *((name, ctypes.c_void_p) for name in ("starts", "ends")),
        ("wide_index", ctypes.c_bool),
        *((name, RowsArgument) for name in ("x", "pre_gate", "post_gate")),
        *((name, ctypes.c_void_p) for name in ("filter", "skip")),
        *((name, RowsArgument) for name in ("out", "grad", "dx", "dpre_gate", "dpost_gate")),
        *((name, ctypes.c_void_p) for name in ("dfilter", "dskip", "workspace")),
    ]


class LegendreArguments(ctypes.Structure):
    """hyenarec::LegendreConvArgs."""

    _fields_ = [
        ("rows", LongConvArguments),
        ("last_only", ctypes.c_bool),
        ("parameters", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in ("filter", "decay")),
        *((name, ctypes.c_int64) for name in ("terms", "horizon")),
        ("skip_dtype", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in ("skip", "dfilter", "ddecay", "dskip")),
    ]


class BlockLevel(ctypes.Structure):
    """hyenarec::BlockLevel."""

    _fields_ = [(name, ctypes.c_int) for name in ("chunk", "fan", "rank", "near_pairs", "far_first", "far_pairs")]


class BlockArguments(ctypes.Structure):
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
        ("levels", BlockLevel * MOST_LEVELS),
        ("constants", ctypes.c_void_p),
        *((name, RowsArgument) for name in ("out", "grad", "dx", "dpre_gate", "dpost_gate")),
        *((name, ctypes.c_void_p) for name in ("dcoefficients", "ddecay", "dskip", "workspace")),
    ]

    def set_levels(self, numbers: list[int]) -> None:
        """Sets the levels from six numbers each, as the operator takes them."""
        self.num_levels = len(numbers) // 6
        for level in range(self.num_levels):
            self.levels[level] = BlockLevel(*numbers[6 * level : 6 * level + 6])


class ToeplitzHost:
    """A library of tests/native/legendre_host.cpp."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.legendre_args_size.restype = self.library.legendre_workspace.restype = ctypes.c_int64
        assert self.library.legendre_args_size() == ctypes.sizeof(LegendreArguments)

    def workspace(self, args: LegendreArguments, backward: bool) -> int:
        args.rows.workspace = None
        size: int = self.library.legendre_workspace(ctypes.byref(args), backward)
        return size

    def run(self, args: LegendreArguments, backward: bool, reversed: bool, workspace: int) -> None:
        args.rows.workspace = workspace
        self.library.legendre_run(ctypes.byref(args), backward, reversed)


class BlockHost:
    """A library of tests/native/host_blocks.cpp. It cuts a call into runs of at least ``least`` elements, and a pass
    into at most ``blocks`` blocks."""

    def __init__(self, path: Path, least: int = WHOLE, blocks: int = PASS_BLOCKS) -> None:
        self.path, self.library = path, ctypes.CDLL(str(path))
        self.sizes = ctypes.c_int64(least), ctypes.c_int(blocks)
        self.library.blocks_args_size.restype = self.library.blocks_workspace.restype = ctypes.c_int64
        assert self.library.blocks_args_size() == ctypes.sizeof(BlockArguments)

    def cut(self, least: int) -> BlockHost:
        """The same library, with runs of at least ``least`` elements."""
        return BlockHost(self.path, least)

    def in_blocks(self, count: int) -> BlockHost:
        """The same library, with at most ``count`` blocks per pass; if they are few, each has several rounds."""
        return BlockHost(self.path, blocks=count)

    def workspace(self, args: BlockArguments, backward: bool) -> int:
        size: int = self.library.blocks_workspace(ctypes.byref(args), backward, *self.sizes)
        return size

    def run(self, args: BlockArguments, backward: bool, reversed: bool, workspace: int) -> None:
        args.workspace = workspace
        self.library.blocks_run(ctypes.byref(args), backward, reversed, *self.sizes)


def toeplitz_host(target: Path, blocks: int = 4, shared: int = FULL_SHARED, source: Path = SOURCE) -> ToeplitzHost:
    """Compiles the programs, with at most ``blocks`` blocks per launch; if they are few, each takes several rounds."""
    _compile("legendre_host.cpp", target, source, f"-DHYENAREC_BLOCKS={blocks}", f"-DHYENAREC_SHARED={shared}")
    return ToeplitzHost(target)


def block_host(target: Path, shared: int = FULL_SHARED, source: Path = SOURCE) -> BlockHost:
    _compile("host_blocks.cpp", target, source, f"-DHYENAREC_SHARED={shared}")
    return BlockHost(target)


def _compile(name: str, target: Path, source: Path, *flags: str) -> None:
    flags = ("-std=c++17", "-O1", "-shared", "-fPIC", f"-I{source}", *flags)
    subprocess.run(["g++", *flags, str(NATIVE / name), "-o", str(target)], check=True)
