"""Checks of a command line before its options are parsed: no option twice, and nothing empty. It also marks ids, so
that those that begin with a dash, as -3 and some of YouTube's do, are not taken for options."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

import tyro

from hyenarec.errors import UserError

ID_OPTIONS = ("--users", "--history")
NO = re.compile(r"(?:^|(?<=\.))no-")  # as in --no-bf16 and --hyena.no-window
MARK = "\ufdd0"  # one of Unicode's noncharacters, so no id begins with it


def check_options(arguments: Sequence[str]) -> None:
    """Raises :class:`UserError` for an option that is given twice, because all its values but the last would be lost,
    and for an empty argument, which as a path would mean the current folder.

    ``--name`` and ``--no-name`` count as one option. ``ID_OPTIONS`` may be repeated.
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
    """``arguments`` with ``ID_OPTIONS`` moved to the end, each followed by all of its ids, which begin with ``MARK``.

    Every argument after such an option is an id, except ``-h`` and those that begin with two dashes. An id that begins
    with two dashes is written ``--users=--ID``, one option for each. In ``similar``, which takes an id without an
    option, every argument after ``--`` is an id.
    """
    if arguments[:1] == ["similar"] and "--" in arguments:
        end = arguments.index("--")
        return [*arguments[:end], *(MARK + argument for argument in arguments[end + 1 :])]
    others: list[str] = []
    ids: dict[str, list[str]] = {}
    option = None  # the one whose ids follow
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
