"""The emulator: lanes of several thread blocks in lockstep, their registers, control flow and barriers.

The lanes that are at the smallest instruction number go on together, so lanes that have diverged meet again. A lane at
a barrier waits until all lanes that have not ended wait too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.gpu.ptx.counting import Counts
from benchmarks.gpu.ptx.faults import Fault
from benchmarks.gpu.ptx.memory import WORDS, Addresses, Array, GlobalMemory, Mask, SharedMemory, Tracker
from benchmarks.gpu.ptx.parsing import Instruction, Program

Step = Callable[[Any], None]  # takes a mask (lanes,), or True for all lanes
WARP = 32
LANES = 1024  # about as many at a time: NumPy's overhead per instruction costs as much as a few hundred lanes
BRANCHES = ("bra", "brx", "ret", "exit")
ENDED = np.iinfo(np.int64).max
SHARED_WINDOW = 1 << 56  # where generic addresses of shared memory begin
TYPES: dict[str, Any] = {
    "pred": np.bool_,
    **{f"{kind}{8 * size}": word for kind in "bu" for size, word in WORDS.items()},
    **{f"s{8 * size}": np.dtype(f"int{8 * size}") for size in WORDS},
    "f16": np.dtype(np.float16),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
}
Binder = Callable[["Lanes", Instruction], Step]
BINDERS: dict[str, Binder] = {}


def op(*names: str) -> Callable[[Binder], Binder]:
    """Registers a function for opcodes that begin with these names: it binds an instruction to the lanes' registers."""

    def register(binder: Binder) -> Binder:
        for name in names:
            assert name not in BINDERS
            BINDERS[name] = binder
        return binder

    return register


def kind_of(instruction: Instruction) -> Any:
    """NumPy's type for the last part of an instruction's opcode."""
    name = instruction.parts[-1]
    if name not in TYPES:
        raise Fault(f"this machine does not know the type {name} here")
    return TYPES[name]


@dataclass(frozen=True)
class Launch:
    """One launch. `parameters` has a value for each: an integer, a float, or the bytes of a struct."""

    program: Program
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int  # of dynamic shared memory
    parameters: tuple[int | float | bytes, ...]

    @property
    def blocks(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]

    def run(self, memory: GlobalMemory) -> None:
        memory.begin_launch()
        self._run(memory, np.arange(self.blocks))

    def sample(self, memory: GlobalMemory, numbers: Addresses) -> Counts:
        """Runs the blocks of these numbers and counts what they use; conflicts between blocks are not checked."""
        counts = Counts(len(self.program.instructions))
        self._run(memory, numbers, counts)
        counts.blocks = len(numbers)
        counts.finish()
        return counts

    def _run(self, memory: GlobalMemory, numbers: Addresses, counts: Counts | None = None) -> None:
        together = max(LANES // self.threads, 1)
        for first in range(0, len(numbers), together):
            Lanes(self, memory, numbers[first : first + together], counts).run()


class Lanes:
    """The threads of some blocks of a launch."""

    def __init__(self, launch: Launch, memory: GlobalMemory, numbers: Addresses, counts: Counts | None) -> None:
        self.launch, self.program, self.memory, self.counts = launch, launch.program, memory, counts
        blocks = len(numbers)
        self.count = blocks * launch.threads
        number = np.arange(self.count, dtype=np.int64)
        self.block = number // launch.threads
        self.thread = number % launch.threads
        self.blocks, self.all = blocks, np.ones(self.count, np.bool_)
        self.index = numbers[self.block]
        self.epoch = np.ones(blocks, np.int64)
        dynamic = -(-self.program.static_shared // 128) * 128
        self.shared_symbols = self.program.shared | dict.fromkeys(self.program.dynamic, dynamic)
        self.shared = SharedMemory(dynamic + launch.shared_bytes, blocks)
        self.global_stamps = Tracker.OWNERS + self.index + 1
        self.copies, self.products = Groups(self.count), Groups(self.count)
        self.registers: dict[str, Array] = {}
        self.symbols = {name: memory.hold(data, name) for name, data in self.program.constants.items()}
        self.symbols |= self._parameters()
        self.place = Instruction(None, False, "", (), "")  # the instruction that is bound or run

    def _parameters(self) -> dict[str, int]:
        symbols, data = {}, bytearray()
        for parameter, value in zip(self.program.parameters, self.launch.parameters, strict=True):
            data += bytes(-len(data) % parameter.alignment)
            symbols[parameter.name] = len(data)
            if isinstance(value, float):
                packed = np.float32(value).tobytes() if parameter.size == 4 else np.float64(value).tobytes()
            elif isinstance(value, bytes):
                packed = value
            else:
                packed = (value % (1 << 8 * parameter.size)).to_bytes(parameter.size, "little")
            if len(packed) != parameter.size:
                raise Fault(f"{self.program.name}: parameter {parameter.name} has {parameter.size} bytes")
            data += packed
        address = self.memory.hold(bytes(data) + bytes(16), "the launch's parameters")
        return {name: address + at for name, at in symbols.items()}

    # ---- registers and operands ----------------------------------------------------------------------------------

    def register(self, name: str) -> Array:
        if name not in self.registers:
            width = self.program.width(name)
            self.registers[name] = np.zeros(self.count, np.bool_ if width == 1 else WORDS[width // 8])
        return self.registers[name]

    def read(self, operand: str, dtype: npt.DTypeLike) -> Array:
        """An operand's values, (lanes,) or (1,): a view of the register, so that a step is bound once and sees later
        values."""
        kind = np.dtype(dtype)
        if (operand.startswith("%") and "." in operand) or operand in ("%laneid", "%warpid"):
            return self._special(operand).astype(kind)
        if operand.startswith("%"):
            values = self.register(operand)
            if kind == np.bool_ or values.dtype == np.bool_:
                return values
            if values.itemsize == kind.itemsize:
                return values.view(kind)
            if values.itemsize > kind.itemsize:  # the low part
                return values.view(kind)[:: values.itemsize // kind.itemsize]
            raise Fault(f"{operand} has fewer bits than {kind}")
        return np.array([self.constant(operand, kind)])

    def constant(self, text: str, kind: np.dtype[Any]) -> Any:
        bits: Any
        if text[:2] in ("0f", "0F") and len(text) == 10:
            bits = np.uint32(int(text[2:], 16))
        elif text[:2] in ("0d", "0D") and len(text) == 18:
            bits = np.uint64(int(text[2:], 16))
        elif _is_number(text):
            value = int(text.rstrip("U"), 0)
            if kind == np.bool_:
                return np.bool_(value != 0)
            bits = WORDS[kind.itemsize].type(value % (1 << 8 * kind.itemsize))
        else:
            bits = WORDS[kind.itemsize].type(self.symbol(text))
        if bits.itemsize != kind.itemsize:
            raise Fault(f"constant {text} as {kind}")
        return bits.view(kind)

    def symbol(self, name: str) -> int:
        """The address of a variable; for one in shared memory, its offset."""
        for symbols in (self.shared_symbols, self.symbols):
            if name in symbols:
                return symbols[name]
        raise Fault(f"unknown name {name}")

    def _special(self, name: str) -> Addresses:
        grid = self.launch.grid
        per = {"x": (1, grid[0]), "y": (grid[0], grid[1]), "z": (grid[0] * grid[1], grid[2])}
        kind, _, axis = name[1:].partition(".")
        ones = np.ones(self.count, np.int64)
        if kind == "ctaid":
            return self.index // per[axis][0] % per[axis][1]
        if kind == "nctaid":
            return ones * per[axis][1]
        if kind == "tid":
            return self.thread if axis == "x" else ones * 0
        if kind == "ntid":
            return ones * (self.launch.threads if axis == "x" else 1)
        if kind == "laneid":
            return self.thread % WARP
        if kind == "warpid":
            return self.thread // WARP
        raise Fault(f"unknown special register {name}")

    def write(self, operand: str, dtype: npt.DTypeLike) -> Callable[[Array, Any], None]:
        """A function put(values, mask), which writes values of a type to a register that is as wide or wider."""
        if operand == "_":
            return lambda values, mask: None
        register, kind = self.register(operand), np.dtype(dtype)
        if register.dtype != np.bool_:
            signed = register.itemsize > kind.itemsize and kind.kind == "i"
            register = register.view(f"int{8 * register.itemsize}") if signed else register
            if not signed and register.itemsize == kind.itemsize:
                register = register.view(kind)
        return lambda values, mask: np.copyto(register, values, where=mask, casting="unsafe")

    def out(self, operand: str, dtype: npt.DTypeLike) -> Array:
        """The register itself, for `out=`."""
        register, kind = self.register(operand), np.dtype(dtype)
        if register.dtype != np.bool_ and register.itemsize != kind.itemsize:
            raise Fault(f"{operand} is not as wide as {kind}")
        return register if register.dtype == np.bool_ else register.view(kind)

    # ---- stamps of accesses --------------------------------------------------------------------------------------

    def stamps(self) -> Addresses:
        """The stamp of each lane's accesses to shared memory: its block's epoch and its warp."""
        return self.epoch[self.block] * Tracker.OWNERS + self.thread // WARP + 1

    def active(self, mask: Any) -> Mask:
        """The mask as an array."""
        return self.all if mask is True else mask

    def whole_warps(self, mask: Any) -> Mask:
        """The mask as an array. Raises a `Fault` unless every warp takes part with all of its lanes, or not at all."""
        if mask is True:
            return self.all
        lanes: Mask = mask.reshape(-1, WARP)
        if (lanes.any(1) != lanes.all(1)).any():
            raise Fault("a warp's instruction that not all of its lanes execute")
        return mask  # type: ignore[no-any-return]

    # ---- running -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            with np.errstate(all="ignore"):
                self._run([self._bind(instruction) for instruction in self.program.instructions])
        except Fault as fault:
            at = f"{self.place.where}: {self.place.opcode} {', '.join(self.place.operands)}"
            raise Fault(f"{self.program.name}, blocks {self.index[0]} to {self.index[-1]}, {at}: {fault}") from fault

    def _bind(self, instruction: Instruction) -> Step:
        self.place = instruction
        name = instruction.parts[0]
        if name in (*BRANCHES, "bar", "barrier"):
            return lambda mask: None  # `_run` does these; ``bar.warp`` does nothing: a warp runs in lockstep
        if name not in BINDERS:
            raise Fault("this machine does not know the instruction")
        return BINDERS[name](self, instruction)

    def _run(self, steps: list[Step]) -> None:
        code = self.program.instructions
        names = [instruction.parts[0] for instruction in code]
        barriers = [name in ("bar", "barrier") and "warp" not in i.parts for name, i in zip(names, code, strict=True)]
        at = np.zeros(self.count, np.int64)  # each lane's instruction; kept only while lanes differ
        waits = np.zeros(self.count, np.bool_)
        everyone, now = True, 0
        while True:
            if not everyone:
                runnable = np.where(waits, ENDED, at)
                now = int(runnable.min())
                if now == ENDED:
                    if not waits.any():
                        return
                    self._meet(at, waits)
                    continue
                active = runnable == now
                everyone = bool(active.all())
            self.place = instruction = code[now]
            mask: Any = True if everyone else active
            if instruction.predicate is not None:
                predicate = self.register(instruction.predicate)
                taken = ~predicate if instruction.negated else predicate
                mask = taken.copy() if everyone else taken & active
            if self.counts:
                self.counts.step(now, self.count, mask)
            if names[now] in BRANCHES:
                goal = self._goal(instruction)
                if everyone and (mask is True or mask.all()) and isinstance(goal, int):
                    if goal == ENDED:
                        return
                    now = goal
                    continue
                if everyone:
                    at[:], active, everyone = now, np.ones(self.count, np.bool_), False
                at[active] = now + 1
                np.copyto(at, goal, where=mask)
                continue
            if barriers[now]:
                self._barrier(instruction)
                if everyone:
                    self.epoch += 1
                else:
                    waits |= active
            else:
                steps[now](mask)
            if everyone:
                now += 1
            else:
                at[active] = now + 1

    def _goal(self, instruction: Instruction) -> Any:
        """The number of the instruction that a branch goes to; one for each lane where the branch takes it from a
        table."""
        if instruction.parts[0] == "bra":
            return self.program.labels[instruction.operands[0]]
        if instruction.parts[0] == "brx":
            index, table = instruction.operands
            goals = [self.program.labels[name] for name in self.program.tables[table]]
            chosen = self.read(index, np.uint32).astype(np.int64)
            return np.array(goals)[np.minimum(chosen, len(goals) - 1)]
        return ENDED

    def _barrier(self, instruction: Instruction) -> None:
        if instruction.operands != ("0",) or instruction.predicate is not None:
            raise Fault("a barrier of a part of the block's threads")

    def _meet(self, at: Addresses, waits: Mask) -> None:
        """Lets lanes go on once all that have not ended wait at a barrier. Raises a `Fault` if threads of one block
        wait at different ones."""
        for block in np.unique(self.block[waits]):
            if len(np.unique(at[waits & (self.block == block)])) > 1:
                raise Fault("threads of one block wait at different barriers")
            self.epoch[block] += 1
        waits[:] = False


Work = Callable[[Mask], None]  # called with the lanes that it is to be done for


class Groups:
    """Asynchronous work: it is done when lanes wait for its group, no earlier."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self._open: list[tuple[Mask, Work]] = []
        self._groups: list[tuple[Mask, list[tuple[Mask, Work]]]] = []

    def add(self, of: Mask, work: Work) -> None:
        self._open.append((of.copy(), work))

    def commit(self, active: Mask) -> None:
        """Makes a group of what these lanes added since their last commit."""
        self._groups.append((active.copy(), [(of & active, work) for of, work in self._open]))
        self._open = [(of & ~active, work) for of, work in self._open if (of & ~active).any()]

    def wait(self, left: int, active: Mask) -> None:
        """Does the work of all groups of a lane but its `left` newest."""
        newer, ripe = np.zeros(self.lanes, np.int64), []
        for members, works in reversed(self._groups):
            waited = members & active
            ripe.append((members, works, waited & (newer >= left)))
            newer += waited
        for members, works, done in reversed(ripe):
            for of, work in works:
                if (of & done).any():
                    work(of & done)
            members &= ~done
        self._groups = [group for group in self._groups if group[0].any()]


def _is_number(text: str) -> bool:
    return text.lstrip("-")[:1].isdigit()
