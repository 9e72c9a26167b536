"""Parses PTX text into a `Program`: parameters, memory that it declares, and instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property

from benchmarks.gpu.ptx.faults import Fault

SIZES = {"8": 1, "16": 2, "32": 4, "64": 8}
LABEL = re.compile(r"([$\w]+):")
PREDICATE = re.compile(r"@(!?)(%\w+)\s+")
DECLARED = re.compile(r"(?:\.\w+\s+)*?\.align (\d+) \.b8 ([$\w]+)\[(\d*)\](?:\s*=\s*\{([^}]*)\})?")
REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)")
PARAMETER = re.compile(
    r"\.param\s+(?:\.align (\d+)\s+)?\.(\w+)\s+(?:\.ptr\s+(?:\.\w+\s+)?(?:\.align \d+\s+)?)?(\w+)(\[\d+\])?"
)


@dataclass(frozen=True)
class Instruction:
    """One instruction: ``@!%p1 add.s32 %r1, %r2, 3`` has the predicate ``%p1``, negated, and three operands.

    `where` names the line of the PTX text and, where the text says it, the line of the source.
    """

    predicate: str | None
    negated: bool
    opcode: str
    operands: tuple[str, ...]
    where: str

    @cached_property
    def parts(self) -> list[str]:
        return self.opcode.split(".")


@dataclass(frozen=True)
class Parameter:
    name: str
    size: int
    alignment: int
    kind: str  # u64, b32, ..., or b8 for a struct


@dataclass
class Program:
    """One kernel.

    Attributes:
        threads: threads per block, where the text says so.
        widths: bits of registers, by the prefix of their names; 1 for predicates.
        shared: offsets of the symbols in shared memory, `static_shared` bytes in all.
        dynamic: symbols of the shared memory whose size the launch gives, which lies behind the static part.
        constants: initial values of the module's global and constant memory.
    """

    name: str
    parameters: list[Parameter] = field(default_factory=list)
    threads: int | None = None
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    tables: dict[str, tuple[str, ...]] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)
    shared: dict[str, int] = field(default_factory=dict)
    static_shared: int = 0
    dynamic: list[str] = field(default_factory=list)
    constants: dict[str, bytes] = field(default_factory=dict)

    def width(self, register: str) -> int:
        """The bits of a register such as ``%r17``, by the declaration ``.reg .b32 %r<20>`` or by its own."""
        prefix = register.rstrip("0123456789")
        width = self.widths.get(register) or self.widths.get(prefix)
        if width is None:
            raise Fault(f"{self.name}: register {register} is not declared")
        return width


def programs(text: str) -> list[Program]:
    """Every kernel of a module."""
    module, *entries = re.split(r"\.visible \.entry |\.weak \.entry |\.entry ", text)
    found = []
    for entry in entries:
        head, _, rest = entry.partition("{")
        program = Program(re.match(r"[$\w]+", head)[0])  # type: ignore[index]
        listed = head[head.find("(") + 1 : head.rfind(")")]
        for alignment, kind, name, array in PARAMETER.findall(listed):
            size = SIZES[kind[1:]] * (int(array[1:-1]) if array else 1)
            program.parameters.append(Parameter(name, size, int(alignment or size), kind))
        threads = re.search(r"\.(?:reqntid|maxntid) (\d+)", head)
        program.threads = int(threads[1]) if threads else None
        for line in module.splitlines():
            _declare(program, line)
        _body(program, rest, text.count("\n", 0, text.find(entry)) + head.count("\n") + 1)
        found.append(program)
    return found


def _declare(program: Program, line: str) -> None:
    """Records memory that a line declares: shared, or with initial values. Raises a `Fault` for local memory."""
    match = DECLARED.search(line)
    if match is None or line.lstrip().startswith(".param"):
        return
    alignment, name, size, values = int(match[1]), match[2], match[3], match[4]
    if ".shared" in line:
        at = -(-program.static_shared // alignment) * alignment
        if not size:
            program.dynamic.append(name)
            return
        program.shared[name] = at
        program.static_shared = at + int(size)
    elif ".global" in line or ".const" in line:
        data = bytes(int(value) for value in values.split(",")) if values else b""
        program.constants[name] = data.ljust(int(size), b"\0")
    elif ".local" in line:
        raise Fault(f"{program.name}: local memory {name}[{size}]: a stack frame")


def _body(program: Program, text: str, first: int) -> None:
    depth, source = 1, ""
    pending = ""  # a statement goes on until its semicolon
    for number, raw in enumerate(text.splitlines(), first):
        line, _, comment = raw.partition("//")
        line = line.strip()
        if line.startswith(".loc"):
            source = comment.strip()
            continue
        if line.startswith((".section", ".file")):
            return
        while line:
            if not pending and line[0] in "{}":
                depth += 1 if line[0] == "{" else -1
                line = line[1:].lstrip()
                if depth == 0:
                    program.instructions.append(Instruction(None, False, "ret", (), "the end"))
                    return
                continue
            label = None if pending else LABEL.match(line)
            if label and ".branchtargets" not in line:
                program.labels[label[1]] = len(program.instructions)
                line = line[label.end() :].lstrip()
                continue
            statement, end, line = line.partition(";")
            pending += " " + statement
            line = line.lstrip()
            if end:
                _statement(program, pending.strip(), f"line {number}" + (f" ({source})" if source else ""))
                pending = ""


def _statement(program: Program, statement: str, where: str) -> None:
    table = re.match(r"([$\w]+):\s*\.branchtargets\s+(.*)", statement, re.DOTALL)
    if table:
        program.tables[table[1]] = tuple(name.strip() for name in table[2].split(","))
        return
    registers = REGISTERS.match(statement)
    if registers:
        for name in registers[2].split(","):
            width = 1 if registers[1] == "pred" else int(registers[1][1:])
            program.widths[name.strip().split("<")[0]] = width
        return
    if statement.startswith("."):
        _declare(program, statement)
        return
    predicate = PREDICATE.match(statement)
    rest = statement[predicate.end() :] if predicate else statement
    opcode, *operands = rest.split(maxsplit=1)
    program.instructions.append(
        Instruction(
            predicate[2] if predicate else None,
            bool(predicate and predicate[1]),
            opcode,
            _split("".join(operands)),
            where,
        )
    )


def _split(text: str) -> tuple[str, ...]:
    """Splits at the commas outside braces and brackets."""
    parts, depth, begin = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter in "{[(") - (letter in "}])")
        if letter == "," and depth == 0:
            parts.append(text[begin:at].strip())
            begin = at + 1
    last = text[begin:].strip()
    return (*parts, last) if last else tuple(parts)
