"""Ids on a command line: they may begin with a dash, as -3 and YouTube's do, and are no options for that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import tyro

ID_OPTIONS = ("--users", "--history")
MARK = "\ufdd0"  # no character, so no id begins with it


def mark_ids(arguments: Sequence[str]) -> list[str]:
    """``arguments`` with ``MARK`` before every id after one of ``ID_OPTIONS`` that begins with a single dash.

    Nothing else there does, but for ``-h``. An id that begins with two dashes is written ``--users=--ID``.
    """
    marked, among_ids = [], False
    for argument in arguments:
        if argument.startswith("--") or argument == "-h":
            among_ids = argument in ID_OPTIONS
        elif among_ids and argument.startswith("-"):
            argument = MARK + argument
        marked.append(argument)
    return marked


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
