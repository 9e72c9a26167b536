from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hyenarec_benchmarks import serving, steps


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suites measure in this process, which saves a few seconds for each measurement."""

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    for module in (steps, serving):
        monkeypatch.setattr(module, "in_fresh_process", call)
    monkeypatch.setattr(steps, "keep_freed_memory", lambda: True)
    monkeypatch.setattr(serving, "keep_freed_memory", lambda: True)
