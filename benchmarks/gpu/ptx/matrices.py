"""Matrix instructions of a warp. Which lane holds which entry is as in the PTX manual.

With ``g = lane // 4`` and ``t = lane % 4``, register i of a lane holds, in its lower (h = 0) and upper (h = 1) half:

    16 bits, A     row g + 8 (i % 2), column 2 t + h + 8 (i // 2)
    16 bits, B     row 2 t + h + 8 i, column g
    32 bits, A     row g + 8 (i % 2), column t + 4 (i // 2)
    32 bits, B     row t + 4 i, column g
    C and D        row g + 8 (i // 2), column 2 t + i % 2
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.gpu.ptx.faults import Fault
from benchmarks.gpu.ptx.formats import cut_tf32, from_bfloat16
from benchmarks.gpu.ptx.machine import WARP, Lanes, Step, op
from benchmarks.gpu.ptx.memory import Array, Mask
from benchmarks.gpu.ptx.parsing import Instruction
from benchmarks.gpu.ptx.transfers import address_of, braced, load_words, store_words

SHAPE = re.compile(r"m16n8k(\d+)")


@cache
def places(matrix: str, bits: int, registers: int) -> npt.NDArray[np.int64]:
    """The flat index, in a 16 x k, k x 8 or 16 x 8 matrix, of entries ordered by register, lane and half."""
    lane, halves = np.arange(WARP), 1 if matrix == "C" else 32 // bits
    g, t, out = lane // 4, lane % 4, []
    depth = (registers // 2 if matrix == "A" else registers) * (8 if bits == 16 else 4)
    for i in range(registers):
        for h in range(halves):
            if matrix == "C":
                row, column, width = g + 8 * (i // 2), 2 * t + i % 2, 8
            elif matrix == "A":
                column = 2 * t + h + 8 * (i // 2) if bits == 16 else t + 4 * (i // 2)
                row, width = g + 8 * (i % 2), depth
            else:
                row, column, width = (2 * t + h + 8 * i if bits == 16 else t + 4 * i), g, 8
            out.append(row * width + column)
    order = np.array(out).reshape(registers, halves, WARP).transpose(0, 2, 1).reshape(-1)  # [entry] -> place
    assert len(np.unique(order)) == len(order)
    return order


def fragment(lanes: Lanes, registers: list[Array], name: str, kind: str, depth: int) -> Array:
    """Matrix A (16, depth) or B (depth, 8) of each warp, in float32."""
    bits = 32 if kind == "tf32" else 16
    stacked = np.stack([np.broadcast_to(r, lanes.count) for r in registers])  # (registers, lanes)
    halves = stacked if bits == 32 else stacked[..., None].view(np.uint16)  # (registers, lanes, 2)
    warps = lanes.count // WARP
    entries = numbers(halves, kind).reshape(len(registers), warps, WARP, -1).transpose(1, 0, 2, 3).reshape(warps, -1)
    out = np.empty((warps, entries.shape[1]), np.float32)
    out[:, places(name, bits, len(registers))] = entries
    return out.reshape(warps, *((16, depth) if name == "A" else (depth, 8)))


def numbers(bits: Array, kind: str) -> Array:
    """The float32 values that a matrix instruction reads from the bits of a type."""
    if kind == "tf32":
        return cut_tf32(bits)
    values: Array = from_bfloat16(bits) if kind == "bf16" else bits.view(np.float16).astype(np.float32)
    return values


@op("mma")
def multiply(lanes: Lanes, instruction: Instruction) -> Step:
    found = SHAPE.search(instruction.opcode)
    types = instruction.parts[-4:]
    if found is None or types[0] != "f32" or types[3] != "f32" or types[1] not in ("bf16", "f16", "tf32"):
        raise Fault("this machine does not know the instruction")
    depth, kind = int(found[1]), types[1]
    bits = 32 if kind == "tf32" else 16
    names = [braced(operand) for operand in instruction.operands]
    a, b = ([lanes.read(name, np.uint32) for name in group] for group in names[1:3])
    c, outs = [lanes.read(name, np.float32) for name in names[3]], [lanes.out(name, np.float32) for name in names[0]]
    if len(a) * 2 * (32 // bits) != depth or len(b) * 4 * (32 // bits) != depth:
        raise Fault("a matrix that has another number of registers")

    def step(mask: Any) -> None:
        lanes.whole_warps(mask)
        left, right = (fragment(lanes, r, name, kind, depth) for r, name in ((a, "A"), (b, "B")))
        entries = np.matmul(left, right).reshape(-1, 128)[:, places("C", 32, 4)].reshape(-1, 4, WARP)
        results = [entries[:, i].reshape(-1) + c[i] for i in range(4)]
        for out, values in zip(outs, results, strict=True):
            np.copyto(out, values, where=mask)

    return step


def _fragments(lanes: Lanes, instruction: Instruction) -> tuple[int, bool]:
    """The number of 8 x 8 matrices of 16-bit values, and whether they are transposed."""
    if "m8n8" not in instruction.parts or not instruction.parts[-1].startswith("b16"):
        raise Fault("this machine does not know the instruction")
    count = next(int(part[1:]) for part in instruction.parts if part in ("x1", "x2", "x4"))
    return count, "trans" in instruction.parts


def _rows(lanes: Lanes, number: int) -> Mask:
    """The lanes whose addresses are the rows of matrix `number`."""
    rows: Mask = (lanes.thread % WARP) // 8 == number
    return rows


@op("ldmatrix")
def load_matrix(lanes: Lanes, instruction: Instruction) -> Step:
    count, transposed = _fragments(lanes, instruction)
    puts = [lanes.write(name, np.uint32) for name in braced(instruction.operands[0])]
    at = address_of(lanes, instruction.operands[1])
    lane = np.arange(WARP)

    def step(mask: Any) -> None:
        whole, addresses = lanes.whole_warps(mask), at()
        for i in range(count):
            rows = _rows(lanes, i) & whole
            words = load_words(lanes, "shared", addresses, 4, 4, rows).reshape(-1, WARP, 4)[:, 8 * i : 8 * i + 8]
            values = np.ascontiguousarray(words).view(np.uint16).reshape(-1, 8, 8)
            values = values.transpose(0, 2, 1) if transposed else values
            pairs = np.ascontiguousarray(values).view(np.uint32).reshape(-1, 8, 4)
            puts[i](pairs[:, lane // 4, lane % 4].reshape(-1), mask)

    return step


@op("stmatrix")
def store_matrix(lanes: Lanes, instruction: Instruction) -> Step:
    count, transposed = _fragments(lanes, instruction)
    at = address_of(lanes, instruction.operands[0])
    registers = [lanes.read(name, np.uint32) for name in braced(instruction.operands[1])]

    def step(mask: Any) -> None:
        whole, addresses = lanes.whole_warps(mask), at()
        for i in range(count):
            held = np.broadcast_to(registers[i], lanes.count).reshape(-1, 8, 4)
            values = np.ascontiguousarray(held).view(np.uint16).reshape(-1, 8, 8)
            values = values.transpose(0, 2, 1) if transposed else values
            words = np.zeros((lanes.count // WARP, WARP, 4), np.uint32)
            words[:, 8 * i : 8 * i + 8] = np.ascontiguousarray(values).view(np.uint32).reshape(-1, 8, 4)
            store_words(lanes, "shared", addresses, words.reshape(-1, 4), _rows(lanes, i) & whole)

    return step
