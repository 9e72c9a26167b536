"""Instructions that compute on each lane by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.gpu.ptx.faults import Fault
from benchmarks.gpu.ptx.formats import PACKED, from_bfloat16, halves, pack, round_tf32, to_bfloat16
from benchmarks.gpu.ptx.machine import TYPES, Lanes, Step, kind_of, op
from benchmarks.gpu.ptx.memory import Array
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
# Comparisons with numbers that may be NaN. Ordered ones, `ne` too, are then false. One whose name ends in u is the
# negation of the ordered one that is given here.
UNORDERED = {"equ": "ne", "neu": "eq", "ltu": "ge", "leu": "gt", "gtu": "le", "geu": "lt"}
WIDE = {"s16": np.int32, "u16": np.uint32, "s32": np.int64, "u32": np.uint64}


def plain(lanes: Lanes, instruction: Instruction, function: Callable[..., Array], count: int) -> Step:
    """Applies a NumPy function to `count` operands; 16-bit values go to `packed`."""
    target, *operands = instruction.operands
    name = instruction.parts[-1]
    if name in PACKED or name == "bf16" or (name == "f16" and count > 1):
        return packed(lanes, instruction, function, count)
    kind = kind_of(instruction)
    inputs, out = [lanes.read(operand, kind) for operand in operands[:count]], lanes.out(target, kind)

    def step(mask: Any) -> None:
        function(*inputs, out=out, where=mask)

    return step


def packed(lanes: Lanes, instruction: Instruction, function: Callable[..., Array], count: int) -> Step:
    """Applies it to float16 or bfloat16 values, one or two per register: computed in float32 and rounded once."""
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


def saturated(values: Array) -> Array:
    """Clips to between 0 and 1; NaN becomes 0."""
    return np.clip(np.nan_to_num(values, nan=0.0), 0, 1)


@op(*BINARY)
def binary(lanes: Lanes, instruction: Instruction) -> Step:
    parts, function = instruction.parts, BINARY[instruction.parts[0]]
    if parts[0] == "mul" and ("wide" in parts or "hi" in parts):
        return _product(lanes, instruction)
    if "sat" in parts or "cc" in parts:
        raise Fault("this machine does not know the instruction")
    return plain(lanes, instruction, function, 2)


def _product(lanes: Lanes, instruction: Instruction) -> Step:
    """The full product of two integers, or its upper half; `mad` adds a third integer."""
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
    if parts[-1] == "f32":  # in float64, so rounded only once in almost all cases
        saturates = "sat" in parts
        target, *operands = instruction.operands
        a, b, c = (lanes.read(operand, np.float32) for operand in operands)
        out = lanes.out(target, np.float32)

        def step(mask: Any) -> None:
            value = np.multiply(a, b, dtype=np.float64) + c
            np.copyto(out, saturated(value) if saturates else value, where=mask, casting="same_kind")

        return step

    def function(a: Array, b: Array, c: Array, out: Any = None, where: Any = True) -> Any:
        return np.add(a * b, c, out=out, where=where)

    return plain(lanes, instruction, function, 3)


@op("min", "max")
def extreme(lanes: Lanes, instruction: Instruction) -> Step:
    parts = instruction.parts
    if parts[-1][0] in "su" or "NaN" in parts:
        functions = {"min": np.minimum, "max": np.maximum}
    else:
        functions = {"min": np.fmin, "max": np.fmax}
    return plain(lanes, instruction, functions[parts[0]], len(instruction.operands) - 1)


@op("div", "rem")
def quotient(lanes: Lanes, instruction: Instruction) -> Step:
    kind = np.dtype(kind_of(instruction))
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
    def function(x: Array, out: Array, where: Any) -> Any:
        return np.divide(1, np.sqrt(x), out=out, where=where, dtype=x.dtype)

    return plain(lanes, instruction, function, 1)


@op("copysign")
def copysign(lanes: Lanes, instruction: Instruction) -> Step:
    def function(sign: Array, x: Array, out: Array, where: Any) -> Any:
        return np.copysign(x, sign, out=out, where=where)

    return plain(lanes, instruction, function, 2)


@op("mov")
def move(lanes: Lanes, instruction: Instruction) -> Step:
    target, source = instruction.operands
    kind = np.dtype(kind_of(instruction))
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
    parts, kind = instruction.parts, np.dtype(kind_of(instruction))
    targets = instruction.operands[0].split("|")
    a, b = (lanes.read(operand, kind) for operand in instruction.operands[1:3])
    name = parts[1]
    join: Callable[..., Array] | None = None
    if len(instruction.operands) > 3:
        join = BINARY[next(part for part in parts if part in ("and", "or", "xor"))]
        negated = instruction.operands[3].startswith("!")
        other = lanes.read(instruction.operands[3].lstrip("!"), np.bool_)
    outs = [lanes.write(target, np.bool_) for target in targets]

    def result() -> Any:
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
    kind = kind_of(instruction)
    a, b = lanes.read(yes, kind), lanes.read(no, kind)
    chosen, put = lanes.read(predicate, np.bool_), lanes.write(target, kind)
    return lambda mask: put(np.where(chosen, a, b), mask)


@op("cvt")
def convert(lanes: Lanes, instruction: Instruction) -> Step:
    target, *operands = instruction.operands
    parts = instruction.parts
    to, source = parts[-2], parts[-1]
    if "relu" in parts or ("sat" in parts and to != "f32"):
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
        if "sat" in parts:
            value = saturated(value)
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
