"""The ``hyenarec`` command: one file a subcommand."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated

import tyro

from hyenarec.allocator import keep_freed_memory
from hyenarec.cli.compare import Compare
from hyenarec.cli.demo import Demo
from hyenarec.cli.evaluate import Evaluate
from hyenarec.cli.identifiers import mark_ids
from hyenarec.cli.inspect import Inspect
from hyenarec.cli.prepare import Prepare
from hyenarec.cli.recommend import Recommend
from hyenarec.cli.train import Train
from hyenarec.display import complain, make_output_safe, shown
from hyenarec.errors import UserError

Command = (
    Annotated[Prepare, tyro.conf.subcommand("prepare")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Recommend, tyro.conf.subcommand("recommend")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
)


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Bad input prints one line and exits with code 2."""
    if arguments is None:  # the process is this command's own
        arguments = sys.argv[1:]
        keep_freed_memory()
        make_output_safe()
        warnings.formatwarning = lambda message, *_: f"warning: {shown(str(message))}\n"
    try:
        if sys.stdout is None:
            raise UserError("standard output is closed")
        try:
            _parse(mark_ids(arguments)).run()
        finally:
            sys.stdout.flush()
    except UserError as error:
        complain(f"error: {error}")
        sys.exit(2)
    except BrokenPipeError:  # whoever read the output has left, as head does
        _drop_output()
        sys.exit(1)
    except OSError as error:  # such as a full disk behind standard output
        _drop_output()
        complain(f"error: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)


def _drop_output() -> None:
    """Send to nowhere what cannot be written, or the interpreter would try again at its end, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parse(arguments: list[str]) -> Command:
    return tyro.cli(
        Command, prog="hyenarec", description="Sequential recommendation for long histories.", args=arguments
    )
