"""What a command line says before its options are parsed: no option twice, nothing empty, and ids that may begin with a
dash, as -3 and YouTube's do, and are no options for that."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

import tyro

from hyenarec.errors import UserError

ID_OPTIONS = ("--users", "--history")
NO = re.compile(r"(?:^|(?<=\.))no-")  # as in --no-bf16 and --hyena.no-window
MARK = "\ufdd0"  # no character, so no id begins with it


def check_options(arguments: Sequence[str]) -> None:
    """Raises :class:`UserError` for an option that is given twice, of whose values all but the last would be lost, and
    for an empty argument, which as a path would be the current folder.

    ``--name`` and ``--no-name`` are one option; those of ids may be repeated.
    """
    seen: dict[str, str] = {}
    for place, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        is_option = option.startswith("--") and len(option) > 2
        if not argument or (is_option and equals and not value):
            previous = (
                arguments[place - 1] if place and arguments[place - 1].startswith("--") else f"argument {place + 1}"
            )
            raise UserError(f"{option or previous}: is empty")
        if not is_option or option in ID_OPTIONS:
            continue
        name = NO.sub("", option[2:].replace("_", "-"))
        if name in seen:
            if seen[name] != option:
                raise UserError(f"{seen[name]} and {option}: name at most one of them")
            raise UserError(f"{option}: is given twice; give it once")
        seen[name] = option


def mark_ids(arguments: Sequence[str]) -> list[str]:
    """``arguments`` with the ids of each of ``ID_OPTIONS`` together behind it, each after ``MARK``, at the end.

    All that follows such an option is an id, but for what begins with two dashes, and ``-h``. An id that begins with
    two dashes is written ``--users=--ID``, once for each. Of ``similar``, which takes an id without an option, all that
    follows ``--`` is one.
    """
    if arguments[:1] == ["similar"] and "--" in arguments:
        end = arguments.index("--")
        return [*arguments[:end], *(MARK + argument for argument in arguments[end + 1 :])]
    others: list[str] = []
    ids: dict[str, list[str]] = {}
    option = None  # whose ids follow
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name in ID_OPTIONS:
            found = ids.setdefault(name, [])
            option = None if equals else name
            if equals:
                found.append(MARK + value)
        elif option is None or argument.startswith("--") or argument == "-h":
            option = None
            others.append(argument)
        else:
            ids[option].append(MARK + argument)
    return others + [part for name, found in ids.items() for part in (name, *found)]


IdArgument = Annotated[
    str,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="ID",
        instance_from_str=lambda given: given[0].removeprefix(MARK),
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
    ),
]
