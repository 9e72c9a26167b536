"""The ``hyenarec`` command: one file a subcommand."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import tyro

from hyenarec.allocator import keep_freed_memory
from hyenarec.cli.compare import Compare
from hyenarec.cli.demo import Demo
from hyenarec.cli.evaluate import Evaluate
from hyenarec.cli.inspect import Inspect
from hyenarec.cli.prepare import Prepare
from hyenarec.cli.recommend import Recommend
from hyenarec.cli.train import Train
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
        keep_freed_memory()
    try:
        _parse(sys.argv[1:] if arguments is None else arguments).run()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # whoever read the output has left, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter would flush, and complain
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)


def _parse(arguments: list[str]) -> Command:
    return tyro.cli(
        Command, prog="hyenarec", description="Sequential recommendation for long histories.", args=arguments
    )
