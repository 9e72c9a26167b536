"""Instructions on the bits of each lane's values: shifts, fields, bytes, counts."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.gpu.ptx.machine import Lanes, Step, kind_of, op
from benchmarks.gpu.ptx.parsing import Instruction


@op("shl", "shr")
def shift(lanes: Lanes, instruction: Instruction) -> Step:
    target, value, amount = instruction.operands
    kind = np.dtype(kind_of(instruction))
    bits, left = 8 * kind.itemsize, instruction.parts[0] == "shl"
    x, by, put = lanes.read(value, kind), lanes.read(amount, np.uint32), lanes.write(target, kind)

    def step(mask: Any) -> None:
        most = np.minimum(by, bits - 1).astype(kind)
        shifted = x << most if left else x >> most
        if left or kind.kind == "u":
            shifted = np.where(by >= bits, kind.type(0), shifted)
        put(shifted, mask)

    return step


@op("shf")
def funnel(lanes: Lanes, instruction: Instruction) -> Step:
    target, low, high, amount = instruction.operands
    a, b, by = (lanes.read(operand, np.uint32) for operand in (low, high, amount))
    put, left, wrap = lanes.write(target, np.uint32), "l" in instruction.parts, "wrap" in instruction.parts

    def step(mask: Any) -> None:
        both = (b.astype(np.uint64) << np.uint64(32)) | a
        count = (by & 31 if wrap else np.minimum(by, 32)).astype(np.uint64)
        put((both << count >> np.uint64(32) if left else both >> count).astype(np.uint32), mask)

    return step


@op("bfe")
def extract(lanes: Lanes, instruction: Instruction) -> Step:
    target, *operands = instruction.operands
    kind = np.dtype(kind_of(instruction))
    bits = 8 * kind.itemsize
    x = lanes.read(operands[0], f"uint{bits}")
    begin, length = (lanes.read(operand, np.uint32) for operand in operands[1:])
    put = lanes.write(target, kind)

    def step(mask: Any) -> None:
        at, n = (begin & 255).astype(np.int64), (length & 255).astype(np.int64)
        value = np.where(at < bits, x.astype(np.uint64) >> np.minimum(at, 63).astype(np.uint64), 0)
        ones = np.where(n < 64, (np.uint64(1) << np.minimum(n, 63).astype(np.uint64)) - np.uint64(1), ~np.uint64(0))
        value = (value & ones).astype(np.int64)
        if kind.kind == "i":
            top = np.minimum(at + n - 1, bits - 1)
            sign = (x.astype(np.int64) >> top) & 1
            value = np.where((n > 0) & (sign > 0), value | ~ones.astype(np.int64), value)
        put(value.astype(kind), mask)

    return step


@op("bfi")
def insert(lanes: Lanes, instruction: Instruction) -> Step:
    target, *operands = instruction.operands
    kind = np.dtype(kind_of(instruction))
    a, b = (lanes.read(operand, kind) for operand in operands[:2])
    begin, length = (lanes.read(operand, np.uint32) for operand in operands[2:])
    put = lanes.write(target, kind)

    def step(mask: Any) -> None:
        at, n = (begin & 255).astype(np.uint64), np.minimum(length & 255, 63).astype(np.uint64)
        field = ((np.uint64(1) << n) - np.uint64(1)) << at
        put(((a.astype(np.uint64) << at & field) | (b & ~field)).astype(kind), mask)

    return step


@op("lop3")
def logic(lanes: Lanes, instruction: Instruction) -> Step:
    target, *operands = instruction.operands
    a, b, c = (lanes.read(operand, np.uint32) for operand in operands[:3])
    table, put = int(operands[3], 0), lanes.write(target, np.uint32)

    def step(mask: Any) -> None:
        total = np.zeros(lanes.count, np.uint32)
        for row in range(8):
            if table >> row & 1:
                total |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
        put(total, mask)

    return step


@op("prmt")
def permute(lanes: Lanes, instruction: Instruction) -> Step:
    target, *operands = instruction.operands
    a, b, selector = (lanes.read(operand, np.uint32) for operand in operands)
    put = lanes.write(target, np.uint32)

    def step(mask: Any) -> None:
        both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
        total = np.zeros(lanes.count, np.uint32)
        for i in range(4):
            chosen = selector >> np.uint32(4 * i)
            byte = both >> (np.uint64(8) * (chosen & 7).astype(np.uint64)) & np.uint64(255)
            byte = np.where(chosen & 8, np.where(byte & np.uint64(128), 255, 0), byte)
            total |= byte.astype(np.uint32) << np.uint32(8 * i)
        put(total, mask)

    return step


@op("popc", "clz", "brev")
def bits(lanes: Lanes, instruction: Instruction) -> Step:
    target, source = instruction.operands
    kind = np.dtype(kind_of(instruction))
    x, name, width = lanes.read(source, kind), instruction.parts[0], 8 * kind.itemsize
    put = lanes.write(target, kind if name == "brev" else np.uint32)

    def step(mask: Any) -> None:
        places = (x[:, None] >> np.arange(width, dtype=kind)) & kind.type(1)  # the lowest first
        if name == "popc":
            put(places.sum(1).astype(np.uint32), mask)
        elif name == "clz":
            put(np.where(x == 0, width, places[:, ::-1].argmax(1)).astype(np.uint32), mask)
        else:
            put((places[:, ::-1] << np.arange(width, dtype=kind)).sum(1).astype(kind), mask)

    return step
