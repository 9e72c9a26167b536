"""Instructions that compute on each lane by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.gpu.ptx.faults import Fault
from benchmarks.gpu.ptx.machine import TYPES, Array, Lanes, Step, op
from benchmarks.gpu.ptx.formats import PACKED, from_bfloat16, halves, pack, round_tf32, to_bfloat16
from benchmarks.gpu.ptx.parsing import Instruction

BINARY: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}
UNARY: dict[str, Callable[..., Array]] = {
    "neg": np.negative,
    "abs": np.abs,
    "not": np.invert,
    "ex2": np.exp2,
    "lg2": np.log2,
    "sqrt": np.sqrt,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "rcp": np.reciprocal,
}
COMPARE: dict[str, Callable[..., Array]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
# Of numbers that may be NaN: `ne` is false then, and a name that ends in u is the opposite of an ordered comparison.
UNORDERED = {"equ": "ne", "neu": "eq", "ltu": "ge", "leu": "gt", "gtu": "le", "geu": "lt"}
WIDE = {"s16": np.int32, "u16": np.uint32, "s32": np.int64, "u32": np.uint64}


def kind_of(lanes: Lanes, instruction: Instruction) -> Any:
    name = instruction.parts[-1]
    if name not in TYPES:
        raise Fault(f"this machine does not know the type {name} here")
    return TYPES[name]


def plain(lanes: Lanes, instruction: Instruction, function: Callable[..., Array], count: int) -> Step:
    """A NumPy function of `count` operands; on 16-bit values in pairs too."""
    target, *operands = instruction.operands
    name = instruction.parts[-1]
    if name in PACKED or name == "bf16" or (name == "f16" and count > 1):
        return packed(lanes, instruction, function, count)
    kind = TYPES.get(name)
    if kind is None:
        raise Fault(f"this machine does not know the type {name} here")
    inputs, out = [lanes.read(operand, kind) for operand in operands[:count]], lanes.out(target, kind)

    def step(mask: Any) -> None:
        function(*inputs, out=out, where=mask)

    return step


def packed(lanes: Lanes, instruction: Instruction, function: Callable[..., Array], count: int) -> Step:
    """On float16 or bfloat16 values, one or two in a register: computed in float32 and rounded once."""
    target, *operands = instruction.operands
    name = instruction.parts[-1]
    single = not name.endswith("x2")
    inputs = [lanes.read(operand, np.uint16 if single else np.uint32) for operand in operands[:count]]
    put = lanes.write(target, np.uint16 if single else np.uint32)
    bfloat = name.startswith("bf16")

    def step(mask: Any) -> None:
        if single:
            put(pack(function(*(halves(v, bfloat)[0] for v in inputs)), None, bfloat), mask)
            return
        low, high = zip(*(halves(v, bfloat) for v in inputs), strict=True)
        put(pack(function(*low), function(*high), bfloat), mask)

    return step


@op(*BINARY)
def binary(lanes: Lanes, instruction: Instruction) -> Step:
    parts, function = instruction.parts, BINARY[instruction.parts[0]]
    if parts[0] == "mul" and ("wide" in parts or "hi" in parts):
        return _product(lanes, instruction)
    if "sat" in parts or "cc" in parts:
        raise Fault("this machine does not know the instruction")
    return plain(lanes, instruction, function, 2)


def _product(lanes: Lanes, instruction: Instruction) -> Step:
    """The whole product of two integers, or its upper half; `mad` adds a third one."""
    target, *operands = instruction.operands
    name = instruction.parts[-1]
    kind = np.dtype(TYPES[name])
    bits, high = 8 * kind.itemsize, "hi" in instruction.parts
    a, b = (lanes.read(operand, kind) for operand in operands[:2])
    if bits == 64:
        return _high_of_64(lanes, instruction, a, b)
    wide = np.dtype(WIDE[name])
    addend = lanes.read(operands[2], kind if high else wide) if len(operands) > 2 else None
    put = lanes.write(target, kind if high else wide)

    def step(mask: Any) -> None:
        value = a.astype(wide) * b.astype(wide)
        if high:
            value = (value >> wide.type(bits)).astype(kind)
        put(value if addend is None else value + addend, mask)

    return step


def _high_of_64(lanes: Lanes, instruction: Instruction, a: Array, b: Array) -> Step:
    out = lanes.write(instruction.operands[0], a.dtype)

    def step(mask: Any) -> None:
        product = [(int(x) * int(y) >> 64) % (1 << 64) for x, y in zip(*np.broadcast_arrays(a, b), strict=True)]
        out(np.array(product, np.uint64).view(a.dtype), mask)

    return step


@op("mad", "fma")
def multiply_add(lanes: Lanes, instruction: Instruction) -> Step:
    parts = instruction.parts
    if "wide" in parts or "hi" in parts:
        return _product(lanes, instruction)
    if parts[-1] == "f32":  # rounded once, as good as always
        target, *operands = instruction.operands
        a, b, c = (lanes.read(operand, np.float32) for operand in operands)
        out = lanes.out(target, np.float32)

        def step(mask: Any) -> None:
            np.copyto(out, np.multiply(a, b, dtype=np.float64) + c, where=mask, casting="same_kind")

        return step

    def function(a: Array, b: Array, c: Array, out: Array | None = None, where: Any = True) -> Array:
        return np.add(a * b, c, out=out, where=where)

    return plain(lanes, instruction, function, 3)


@op("min", "max")
def extreme(lanes: Lanes, instruction: Instruction) -> Step:
    parts = instruction.parts
    if parts[-1][0] in "su":
        functions = {"min": np.minimum, "max": np.maximum}
    elif "NaN" in parts:
        functions = {"min": np.minimum, "max": np.maximum}
    else:
        functions = {"min": np.fmin, "max": np.fmax}
    return plain(lanes, instruction, functions[parts[0]], len(instruction.operands) - 1)


@op("div", "rem")
def quotient(lanes: Lanes, instruction: Instruction) -> Step:
    kind = np.dtype(kind_of(lanes, instruction))
    if kind.kind == "f":
        return plain(lanes, instruction, np.divide, 2)
    a, b = (lanes.read(operand, kind) for operand in instruction.operands[1:])
    put, rest = lanes.write(instruction.operands[0], kind), instruction.parts[0] == "rem"

    def step(mask: Any) -> None:
        x, y = np.broadcast_arrays(a, b)
        if (y[np.broadcast_to(mask, y.shape)] == 0).any():
            raise Fault("division by zero")
        y = np.where(y == 0, kind.type(1), y)
        remainder = np.fmod(x, y)  # rounds towards zero, as PTX does
        put(remainder if rest else (x - remainder) // y, mask)

    return step


@op(*UNARY)
def unary(lanes: Lanes, instruction: Instruction) -> Step:
    return plain(lanes, instruction, UNARY[instruction.parts[0]], 1)


@op("rsqrt")
def inverse_root(lanes: Lanes, instruction: Instruction) -> Step:
    def function(x: Array, out: Array, where: Any) -> Array:
        return np.divide(1, np.sqrt(x), out=out, where=where, dtype=x.dtype)

    return plain(lanes, instruction, function, 1)


@op("copysign")
def copysign(lanes: Lanes, instruction: Instruction) -> Step:
    def function(sign: Array, x: Array, out: Array, where: Any) -> Array:
        return np.copysign(x, sign, out=out, where=where)

    return plain(lanes, instruction, function, 2)


@op("shl", "shr")
def shift(lanes: Lanes, instruction: Instruction) -> Step:
    target, value, amount = instruction.operands
    kind = np.dtype(kind_of(lanes, instruction))
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


@op("mov")
def move(lanes: Lanes, instruction: Instruction) -> Step:
    target, source = instruction.operands
    kind = np.dtype(kind_of(lanes, instruction))
    if target.startswith("{"):
        names = _names(target)
        bits = 8 * kind.itemsize // len(names)
        value, part = lanes.read(source, kind), np.dtype(f"uint{bits}")
        puts = [lanes.write(name, part) for name in names]

        def unpack(mask: Any) -> None:
            for i, put in enumerate(puts):
                put((value >> kind.type(bits * i)).astype(part), mask)

        return unpack
    if source.startswith("{"):
        names = _names(source)
        bits = 8 * kind.itemsize // len(names)
        values, put = [lanes.read(name, np.dtype(f"uint{bits}")) for name in names], lanes.write(target, kind)

        def join(mask: Any) -> None:
            total = values[0].astype(kind)
            for i, v in enumerate(values[1:], 1):
                total = total | (v.astype(kind) << kind.type(bits * i))
            put(total, mask)

        return join
    from_, put = lanes.read(source, kind), lanes.write(target, kind)
    return lambda mask: put(from_, mask)


def _names(braced: str) -> list[str]:
    return [name.strip() for name in braced.strip("{} ").split(",")]


@op("setp")
def compare(lanes: Lanes, instruction: Instruction) -> Step:
    parts, kind = instruction.parts, np.dtype(kind_of(lanes, instruction))
    targets = instruction.operands[0].split("|")
    a, b = (lanes.read(operand, kind) for operand in instruction.operands[1:3])
    name = parts[1]
    join, other = None, None
    if len(instruction.operands) > 3:
        join = BINARY[next(part for part in parts if part in ("and", "or", "xor"))]
        negated = instruction.operands[3].startswith("!")
        other = lanes.read(instruction.operands[3].lstrip("!"), np.bool_)
    outs = [lanes.write(target, np.bool_) for target in targets]

    def result() -> Array:
        if name in ("num", "nan"):
            nan = np.isnan(a) | np.isnan(b)
            return nan if name == "nan" else ~nan
        if name in UNORDERED:
            opposite = UNORDERED[name]
            ordered = COMPARE[opposite](a, b)
            return ~(ordered & ~(np.isnan(a) | np.isnan(b)) if opposite == "ne" else ordered)
        value = COMPARE[name](a, b)
        return value & ~(np.isnan(a) | np.isnan(b)) if name == "ne" and kind.kind == "f" else value

    def step(mask: Any) -> None:
        value = result()
        for i, put in enumerate(outs):
            one = value if i == 0 else ~value
            put(one if join is None else join(one, ~other if negated else other), mask)

    return step


@op("selp")
def select(lanes: Lanes, instruction: Instruction) -> Step:
    target, yes, no, predicate = instruction.operands
    kind = kind_of(lanes, instruction)
    a, b = lanes.read(yes, kind), lanes.read(no, kind)
    chosen, put = lanes.read(predicate, np.bool_), lanes.write(target, kind)
    return lambda mask: put(np.where(chosen, a, b), mask)


@op("cvt")
def convert(lanes: Lanes, instruction: Instruction) -> Step:
    target, *operands = instruction.operands
    parts = instruction.parts
    to, source = parts[-2], parts[-1]
    if "sat" in parts or "relu" in parts:
        raise Fault("this machine does not know the instruction")
    if to in ("bf16x2", "f16x2"):
        high, low = (lanes.read(operand, np.float32) for operand in operands)
        put = lanes.write(target, np.uint32)
        return lambda mask: put(pack(low, high, to == "bf16x2"), mask)
    values = _source(lanes, operands[0], source)
    if to == "bf16":
        put = lanes.write(target, np.uint16)
        return lambda mask: put(to_bfloat16(values().astype(np.float32)), mask)
    if to == "tf32":
        put = lanes.write(target, np.float32)
        return lambda mask: put(round_tf32(values()), mask)
    kind = np.dtype(TYPES[to])
    put = lanes.write(target, kind)
    rounding = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
    rounded = next((rounding[part] for part in parts if part in rounding), None)

    def step(mask: Any) -> None:
        value = values()
        if rounded is not None:
            value = rounded(value)
            if kind.kind in "iu":  # what does not fit saturates
                limits = np.iinfo(kind)
                value = np.clip(np.nan_to_num(value.astype(np.float64)), limits.min, limits.max)
        put(value.astype(kind), mask)

    return step


def _source(lanes: Lanes, operand: str, name: str) -> Callable[[], Array]:
    if name == "bf16":
        bits = lanes.read(operand, np.uint16)
        return lambda: from_bfloat16(bits)
    values = lanes.read(operand, TYPES[name])
    return lambda: values


@op("bfe")
def extract(lanes: Lanes, instruction: Instruction) -> Step:
    target, *operands = instruction.operands
    kind = np.dtype(kind_of(lanes, instruction))
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
    kind = np.dtype(kind_of(lanes, instruction))
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
    kind = np.dtype(kind_of(lanes, instruction))
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
