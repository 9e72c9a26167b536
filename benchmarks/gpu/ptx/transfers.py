"""Instructions that move data: between memory and registers, and between the lanes of a warp."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.gpu.ptx.faults import Fault
from benchmarks.gpu.ptx.machine import SHARED_WINDOW, TYPES, WARP, Lanes, Step, op
from benchmarks.gpu.ptx.memory import WORDS, Addresses, Array, Mask
from benchmarks.gpu.ptx.parsing import Instruction

SPACES = ("param", "global", "shared", "const")
CACHED = ("param", "const")  # these have a cache of their own and do not use the load-store unit


def address_of(lanes: Lanes, operand: str) -> Callable[[], Addresses]:
    """Byte addresses (lanes,) of ``[%rd1 + 16]`` or ``[name]``; for shared memory, offsets into the block's."""
    text = operand.strip("[] ")
    base, _, offset = text.partition("+")
    base, step = base.strip(), int(offset.strip() or "0", 0)
    if base.startswith("%"):
        width = lanes.program.width(base)
        register = lanes.read(base, WORDS[width // 8])
        # 32 bits wrap around: a register may hold a negative number
        wrap = 0xFFFFFFFF if width == 32 else -1
        return lambda: register.astype(np.int64) + step & wrap
    at = np.full(lanes.count, lanes.symbol(base) + step, np.int64)
    return lambda: at


def braced(operand: str) -> list[str]:
    return [name.strip() for name in operand.strip("{} ").split(",")]


def _access(parts: list[str]) -> tuple[str, int]:
    """The memory space, "" for generic addresses, and the number of words."""
    space = next((part.split("::")[0] for part in parts[1:] if part.split("::")[0] in SPACES), "")
    count = next((int(part[1:]) for part in parts if part in ("v2", "v4", "v8")), 1)
    if "local" in parts:
        raise Fault("local memory: a stack frame")
    return space, count


def _parts(lanes: Lanes, space: str, at: Addresses, mask: Mask) -> tuple[Mask, Mask]:
    """Which lanes go to shared memory, and which to global memory."""
    none = np.zeros_like(mask)
    if space == "shared":
        return mask, none
    if space:
        return none, mask
    window = at >= SHARED_WINDOW
    return mask & window, mask & ~window


def _count(lanes: Lanes, space: str, at: Addresses, size: int, shared: Mask, others: Mask) -> None:
    if lanes.counts is None or space in CACHED:
        return
    if shared.any():
        lanes.counts.in_shared_memory(at & (SHARED_WINDOW - 1), size, shared)
    if others.any():
        lanes.counts.in_global_memory(lanes.memory.on_device(at), size, others)


def load_words(lanes: Lanes, space: str, at: Addresses, size: int, count: int, mask: Any) -> Array:
    """Loads (lanes, count) words; those of lanes outside the mask mean nothing."""
    active = lanes.active(mask)
    shared, others = _parts(lanes, space, at, active)
    _count(lanes, space, at, size * count, shared, others)
    out = np.zeros((lanes.count, count), WORDS[size])
    if shared.any():
        offsets = at[shared] & (SHARED_WINDOW - 1)
        out[shared] = lanes.shared.load(offsets, size, count, lanes.block[shared], lanes.stamps()[shared])
    if others.any():
        out[others] = lanes.memory.load(at[others], size, count, lanes.global_stamps[others])
    return out


def store_words(lanes: Lanes, space: str, at: Addresses, values: Array, mask: Any) -> None:
    active = lanes.active(mask)
    shared, others = _parts(lanes, space, at, active)
    _count(lanes, space, at, values.itemsize * values.shape[1], shared, others)
    if shared.any():
        offsets = at[shared] & (SHARED_WINDOW - 1)
        lanes.shared.store(offsets, values[shared], lanes.block[shared], lanes.stamps()[shared])
    if others.any():
        lanes.memory.store(at[others], values[others], lanes.global_stamps[others])


@op("ld", "ldu")
def load(lanes: Lanes, instruction: Instruction) -> Step:
    space, count = _access(instruction.parts)
    kind = np.dtype(TYPES[instruction.parts[-1]])
    target, source = instruction.operands[:2]
    at, puts = address_of(lanes, source), [lanes.write(name, kind) for name in braced(target)]

    def step(mask: Any) -> None:
        words = load_words(lanes, space, at(), kind.itemsize, count, mask)
        for i, put in enumerate(puts):
            put(words[:, i].view(kind), mask)

    if space == "param" and not source.strip("[ ").startswith("%"):
        words = lanes.memory.load(at()[:1], kind.itemsize, count, lanes.global_stamps[:1])
        values = [np.ascontiguousarray(words[:, i]).view(kind) for i in range(count)]

        def constant(mask: Any) -> None:
            for put, value in zip(puts, values, strict=True):
                put(value, mask)

        return constant
    return step


@op("st")
def store(lanes: Lanes, instruction: Instruction) -> Step:
    space, _ = _access(instruction.parts)
    word = WORDS[np.dtype(TYPES[instruction.parts[-1]]).itemsize]
    target, source = instruction.operands[:2]
    at, values = address_of(lanes, target), [lanes.read(name, word) for name in braced(source)]

    def step(mask: Any) -> None:
        words = np.stack([np.broadcast_to(v, lanes.count) for v in values], 1)
        store_words(lanes, space, at(), words, mask)

    return step


@op("cvta")
def convert_address(lanes: Lanes, instruction: Instruction) -> Step:
    """``cvta.shared`` to a generic address, ``cvta.to.shared`` back; addresses of other spaces are generic already."""
    target, source = instruction.operands
    kind = TYPES[instruction.parts[-1]]
    value, put = lanes.read(source, kind), lanes.write(target, kind)
    if not any(part.startswith("shared") for part in instruction.parts):
        return lambda mask: put(value, mask)
    window = np.uint64(SHARED_WINDOW)
    if "to" in instruction.parts:
        return lambda mask: put(value & ~window, mask)
    return lambda mask: put(value | window, mask)


@op("cp")
def copy(lanes: Lanes, instruction: Instruction) -> Step:
    """``cp.async``: data arrives when its group is waited for, no earlier."""
    if instruction.parts[1] != "async" or "bulk" in instruction.parts or "mbarrier" in instruction.parts:
        raise Fault("this machine does not know the instruction")
    if "commit_group" in instruction.parts:
        return lambda mask: lanes.copies.commit(lanes.active(mask))
    if "wait_group" in instruction.parts or "wait_all" in instruction.parts:
        left = int(instruction.operands[0]) if instruction.operands else 0
        return lambda mask: lanes.copies.wait(left, lanes.active(mask))
    target, source, bytes_ = instruction.operands[:3]
    to, from_, size = address_of(lanes, target), address_of(lanes, source), int(bytes_, 0)
    given = lanes.read(instruction.operands[3], np.uint32) if len(instruction.operands) > 3 else np.full(1, size)

    def step(mask: Any) -> None:
        active = lanes.active(mask)
        wanted = np.broadcast_to(given, lanes.count)
        if ((wanted != 0) & (wanted != size) & active).any():
            raise Fault("cp.async of a part of its bytes")
        words = load_words(lanes, "global", from_(), 4, size // 4, active & (wanted > 0))
        to_address = to()
        lanes.copies.add(active, lambda of: store_words(lanes, "shared", to_address, words, of))

    return step


@op("atom", "red")
def atomic(lanes: Lanes, instruction: Instruction) -> Step:
    raise Fault("atomic: sums in no fixed order, or a protocol between blocks that this machine does not run")


@op("membar", "fence", "griddepcontrol", "prefetch", "discard", "nanosleep")
def nothing(lanes: Lanes, instruction: Instruction) -> Step:
    return lambda mask: None


# ---- between the lanes of a warp -------------------------------------------------------------------------------------


def everyone_in(lanes: Lanes, members: Array, mask: Any) -> Mask:
    """The mask as an array. Raises a `Fault` unless it holds just the lanes that the instruction's member mask
    names."""
    active = lanes.active(mask)
    named = (np.broadcast_to(members, lanes.count) >> (lanes.thread % WARP).astype(np.uint32) & 1) > 0
    warps = active.reshape(-1, WARP).any(1).repeat(WARP)
    if ((named & warps) != active).any():
        raise Fault("a warp's instruction whose member mask is not the lanes that execute it")
    return active


@op("shfl")
def shuffle(lanes: Lanes, instruction: Instruction) -> Step:
    target, source, by, clamp = instruction.operands[:4]
    mode = next(part for part in instruction.parts if part in ("bfly", "idx", "up", "down"))
    value = lanes.read(source, np.uint32)
    b, c = (lanes.read(operand, np.uint32) for operand in (by, clamp))
    members = lanes.read(instruction.operands[4], np.uint32)
    names = target.split("|")
    put = lanes.write(names[0], np.uint32)
    put_inside = lanes.write(names[1], np.bool_) if len(names) > 1 else None
    lane = lanes.thread % WARP

    def step(mask: Any) -> None:
        active = everyone_in(lanes, members, mask)
        segment, last = c.astype(np.int64) >> 8 & 31, c.astype(np.int64) & 31
        most, least, shift = (lane & segment) | (last & ~segment), lane & segment, b.astype(np.int64) & 31
        other = {"bfly": lane ^ shift, "idx": least | (shift & ~segment), "up": lane - shift, "down": lane + shift}[
            mode
        ]
        inside = other >= most if mode == "up" else other <= most
        from_ = np.arange(lanes.count) - lane + np.where(inside, other, lane)
        if (~active[from_] & active).any():
            raise Fault("a shuffle from a lane that does not take part")
        put(np.broadcast_to(value, lanes.count)[from_], mask)
        if put_inside:
            put_inside(inside, mask)

    return step


@op("redux")
def reduce(lanes: Lanes, instruction: Instruction) -> Step:
    functions: dict[str, Any] = {"max": np.maximum, "min": np.minimum, "add": np.add}
    functions |= {"or": np.bitwise_or, "and": np.bitwise_and, "xor": np.bitwise_xor}
    name, kind = instruction.parts[2], np.dtype(TYPES[instruction.parts[-1]])
    value, members = lanes.read(instruction.operands[1], kind), lanes.read(instruction.operands[2], np.uint32)
    put = lanes.write(instruction.operands[0], kind)

    def step(mask: Any) -> None:
        everyone_in(lanes, members, mask)
        lanes.whole_warps(mask)
        rows = np.broadcast_to(value, lanes.count).reshape(-1, WARP)
        found = functions[name].reduce(rows, 1)
        put(found.astype(kind).repeat(WARP), mask)

    return step


@op("vote", "activemask")
def vote(lanes: Lanes, instruction: Instruction) -> Step:
    if instruction.parts[0] == "activemask" or "ballot" not in instruction.parts:
        raise Fault("this machine does not know the instruction")
    negated = instruction.operands[1].startswith("!")
    value, put = (
        lanes.read(instruction.operands[1].lstrip("!"), np.bool_),
        lanes.write(instruction.operands[0], np.uint32),
    )

    def step(mask: Any) -> None:
        active = lanes.active(mask)
        rows = ((value ^ negated) & active).reshape(-1, WARP)
        put((rows.astype(np.uint32) << np.arange(WARP, dtype=np.uint32)).sum(1).astype(np.uint32).repeat(WARP), mask)

    return step
