"""The ``hyenarec`` command: one file a subcommand."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Annotated, Any, Union

import tyro

from hyenarec.allocator import keep_freed_memory
from hyenarec.errors import UserError

# Each in a module of its name, in a class of its name.
COMMANDS = ("prepare", "train", "evaluate", "recommend", "compare", "inspect", "demo")


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
    except KeyboardInterrupt as stop:  # training names the signal and what it saved
        print(str(stop) or "interrupted", file=sys.stderr)
        sys.exit(getattr(stop, "exit_code", 130))


def _parse(arguments: list[str]) -> Any:
    """The command that ``arguments`` ask for. Of several only the named one is imported."""
    if arguments and arguments[0] in COMMANDS:
        name = arguments[0]
        return tyro.cli(_command(name), prog=f"hyenarec {name}", args=arguments[1:])
    commands: Any = Union[tuple(Annotated[_command(name), tyro.conf.subcommand(name)] for name in COMMANDS)]  # noqa: UP007
    return tyro.cli(
        commands, prog="hyenarec", description="Sequential recommendation for long histories.", args=arguments
    )


def _command(name: str) -> Any:
    return getattr(import_module(f"hyenarec.cli.{name}"), name.title())
