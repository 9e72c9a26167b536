"""Logs of three events, and helpers that read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hyenarec.data import SequenceStore, read_log
from hyenarec.errors import UserError

HEADER = "user_id,item_id,timestamp\n"
TEXT = HEADER + "1,30,3\n1,10,1\n1,20,2\n"
FRAME = {"user_id": [1, 1, 1], "item_id": [30, 10, 20], "timestamp": [3, 1, 2]}


def history(store: SequenceStore) -> list[Any]:
    return store.item_ids.decode(store.history(0))


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        read_log(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
