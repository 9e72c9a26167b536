"""Which commands may run in the several processes that ``torchrun`` starts."""

from __future__ import annotations

import os
from collections.abc import Sequence

from hyenarec.errors import UserError

TOGETHER = ("train", "evaluate", "recommend")  # commands that several processes can run together


def refuse_together(command: str, arguments: Sequence[str]) -> None:
    """Raises :class:`UserError` if ``command``, which is none of ``TOGETHER``, is started in several processes, or with
    the option ``--shard-items``."""
    refuse_several(command)
    if any(argument.partition("=")[0].replace("_", "-") == "--shard-items" for argument in arguments):
        raise UserError(
            f"option shard_items: not used by {command}, which is done by one process; only by train, "
            "evaluate and recommend, for tables that one process cannot hold"
        )


def refuse_several(command: str) -> None:
    """Raises :class:`UserError` if ``torchrun`` started several processes, which would all do the same work and write
    the same files."""
    if "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"{command}: is done by one process; start it without torchrun")
