"""The ``hyenarec`` command: one file per subcommand."""

from __future__ import annotations

import os
import sys
import warnings
from importlib import import_module
from typing import Annotated, Any, Union

import tyro

from hyenarec.allocator import keep_freed_memory
from hyenarec.cli.identifiers import check_options, mark_ids
from hyenarec.cli.processes import TOGETHER, refuse_together
from hyenarec.display import complain, console, make_output_safe, shown
from hyenarec.errors import UserError

# Each is a class in a module of its name.
COMMANDS = (
    "prepare",
    "train",
    "evaluate",
    "recommend",
    "similar",
    "serve",
    "export",
    "compare",
    "tune",
    "inspect",
    "demo",
)


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Bad input prints one line and exits with code 2."""
    if arguments is None:  # run as a program, not called from Python
        arguments = sys.argv[1:]
        keep_freed_memory()
        make_output_safe()
        warnings.formatwarning = lambda message, *_: f"warning: {shown(str(message))}\n"
    try:
        if sys.stdout is None:
            raise UserError("standard output is closed")
        try:
            check_options(arguments)
            _parse(mark_ids(arguments)).run()
        finally:
            sys.stdout.flush()
    except UserError as error:
        complain(f"error: {error}")
        sys.exit(2)
    except BrokenPipeError:  # the reader of the output has left, as head does
        _drop_output()
        sys.exit(1)
    except OSError as error:  # such as a full disk behind standard output
        _drop_output()
        complain(f"error: {error}")
        sys.exit(2)
    except KeyboardInterrupt as stop:  # from training it names the signal and what was saved
        if not console.quiet:  # as it is in all but one of several processes
            complain(str(stop) or "interrupted")
        sys.exit(getattr(stop, "exit_code", 130))


def _drop_output() -> None:
    """Discard output that cannot be written, or the interpreter would try again at its end, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parse(arguments: list[str]) -> Any:
    """The command that ``arguments`` ask for. If they name one, only its module is imported."""
    if arguments and arguments[0] in COMMANDS:
        name = arguments[0]
        if name not in TOGETHER:
            refuse_together(name, arguments[1:])
        command = _command(name)
        default = command.default(arguments[1:]) if hasattr(command, "default") else None
        given = {} if default is None else {"default": default}
        return tyro.cli(command, prog=f"hyenarec {name}", args=arguments[1:], **given)
    commands: Any = Union[tuple(Annotated[_command(name), tyro.conf.subcommand(name)] for name in COMMANDS)]  # noqa: UP007
    return tyro.cli(
        commands, prog="hyenarec", description="Sequential recommendation for long histories.", args=arguments
    )


def _command(name: str) -> Any:
    return getattr(import_module(f"hyenarec.cli.{name}"), name.title())
