"""Matrix products of four warps, ``wgmma``: A from registers or shared memory, B from shared memory.

They run asynchronously: registers and shared memory are read, and the sums written, when the group is waited for. So a
warp that does not wait, or that changes its operands before it waits, gets wrong results here too.

A descriptor says where a matrix lies in shared memory, in units of 16 bytes: bits 0 to 13 are its address, 16 to 29 and
32 to 45 two strides, and bits 62 and 63 say how it is swizzled. Rows of S = 128, 64 or 32 bytes stand in groups of
eight. The products' inner index k runs along the rows or, if the matrix is transposed, the outer index does. What is
longer than S goes on at the first stride, what has more than eight rows at the second. Swizzling xors bits 4 and up of
an address with bits 7 and up.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.gpu.ptx.faults import Fault
from benchmarks.gpu.ptx.machine import WARP, Lanes, Step, op
from benchmarks.gpu.ptx.matrices import fragment, numbers
from benchmarks.gpu.ptx.memory import WORDS, Addresses, Array, Mask
from benchmarks.gpu.ptx.parsing import Instruction
from benchmarks.gpu.ptx.transfers import braced

SHAPE = re.compile(r"m64n(\d+)k(\d+)\.f32\.(\w+)\.(\w+)")
SWIZZLES = {1: (128, 3), 2: (64, 2), 3: (32, 1)}  # bytes of a row, and how many bits change
GROUP = 4 * WARP


def addresses(descriptor: Addresses, outer: Array, inner: Array, size: int, transposed: bool) -> Addresses:
    """Byte addresses of entries (outer, inner) of the matrices that descriptors (n, 1) name, in `size` bytes each."""
    modes = np.unique(descriptor >> 62 & 3)
    if len(modes) != 1 or int(modes[0]) not in SWIZZLES:
        raise Fault("a matrix descriptor without a swizzle, or of several kinds")
    row, bits = SWIZZLES[int(modes[0])]
    start, leading, stride = (((descriptor >> at) & 0x3FFF) << 4 for at in (0, 16, 32))
    along, across = (outer, inner) if transposed else (inner, outer)
    at = along * size
    at = start + at % row + at // row * leading + across % 8 * row + across // 8 * stride
    swizzled: Addresses = at ^ (at >> 7 & (1 << bits) - 1) << 4
    return swizzled


@op("wgmma")
def warpgroup(lanes: Lanes, instruction: Instruction) -> Step:
    what = instruction.parts[1]
    if what == "fence":
        return lambda mask: None
    if what == "commit_group":
        return lambda mask: lanes.products.commit(lanes.active(mask))
    if what == "wait_group":
        newest = int(instruction.operands[0])
        return lambda mask: lanes.products.wait(newest, lanes.active(mask))
    found = SHAPE.search(instruction.opcode)
    if what != "mma_async" or found is None or found[3] != found[4] or found[3] not in ("bf16", "f16", "tf32"):
        raise Fault("this machine does not know the instruction")
    columns, depth, kind = int(found[1]), int(found[2]), found[3]
    sums, left, right, keep, *flags = instruction.operands
    if any(flag != "1" for flag in flags[:2]):
        raise Fault("a product with a sign")
    transposed = [flag == "1" for flag in flags[2:]] or [False]
    outs = [lanes.out(name, np.float32) for name in braced(sums)]
    kept = lanes.read(keep, np.bool_)
    b_at = lanes.read(right, np.int64)
    product = _left(lanes, left, kind, depth, transposed[0] if len(transposed) > 1 else False)

    def work(of: Mask) -> None:
        active: Mask = of.reshape(-1, WARP).all(1)  # type: ignore[assignment]
        a = product(active)
        b = matrices(lanes, b_at, columns, depth, kind, transposed[-1], active, 0)
        total = np.matmul(a, b.transpose(0, 2, 1))  # (warps, 16, columns)
        g, t = np.arange(WARP) // 4, np.arange(WARP) % 4
        adds = np.broadcast_to(kept, lanes.count)
        for i, out in enumerate(outs):
            entry = total[:, g + 8 * (i % 4 // 2), 8 * (i // 4) + 2 * t + i % 2].reshape(-1)
            np.copyto(out, entry + np.where(adds, out, np.float32(0)), where=of)

    def step(mask: Any) -> None:
        lanes.whole_warps(mask)
        if (lanes.active(mask).reshape(-1, GROUP).any(1) != lanes.active(mask).reshape(-1, GROUP).all(1)).any():
            raise Fault("a product of four warps that not all of them take part in")
        if lanes.counts:
            groups = int(lanes.active(mask).sum()) // GROUP
            lanes.counts.wavefronts["shared"] += groups * columns * depth * (4 if kind == "tf32" else 2) // 128
        lanes.products.add(lanes.active(mask), work)

    return step


def _left(lanes: Lanes, operand: str, kind: str, depth: int, transposed: bool) -> Callable[[Mask], Array]:
    """A function that gives, for a mask of warps, each warp's 16 rows of A, (warps, 16, depth)."""
    if operand.startswith("{"):
        registers = [lanes.read(name, np.uint32) for name in braced(operand)]
        return lambda active: fragment(lanes, registers, "A", kind, depth)
    at = lanes.read(operand, np.int64)
    return lambda active: matrices(lanes, at, 16, depth, kind, transposed, active, 16)


def matrices(
    lanes: Lanes, descriptor: Array, rows: int, depth: int, kind: str, transposed: bool, active: Mask, step: int
) -> Array:
    """Each warp's matrix (rows, depth) from shared memory, in float32; warp w of four begins at row w * `step`."""
    size = 4 if kind == "tf32" else 2
    first = np.broadcast_to(descriptor, lanes.count).reshape(-1, WARP)[active, :1]  # (active warps, 1)
    number = np.flatnonzero(active)[:, None] % 4
    outer, inner = (index.reshape(1, -1) for index in np.indices((rows, depth)))
    at = addresses(first, outer + number * step, inner, size, transposed)
    entries = at.shape[1]
    block = lanes.block.reshape(-1, WARP)[active, :1].repeat(entries)
    stamps = lanes.stamps().reshape(-1, WARP)[active, :1].repeat(entries)
    words = lanes.shared.load(at.reshape(-1), size, 1, block, stamps)
    out = np.zeros((len(active), entries), WORDS[size])
    out[active] = words.reshape(-1, entries)
    return numbers(out, kind).reshape(-1, rows, depth)
