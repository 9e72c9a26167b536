"""Commands among the processes that ``torchrun`` starts."""

from __future__ import annotations

import os

from hyenarec.errors import UserError

TOGETHER = ("train", "evaluate", "recommend")  # what several processes do together


def refuse_several(command: str) -> None:
    """Raises :class:`UserError` where ``torchrun`` started several processes: all would do the same work, and write
    the same files."""
    if "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"{command}: is done by one process; start it without torchrun")
