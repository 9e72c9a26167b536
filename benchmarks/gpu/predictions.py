"""What the performance model predicts for a row, to stand beside the measurement: an estimate, made without a GPU.

``benchmarks/results/gpu-model.json`` has a list ``estimates``. Each names its ``backend``, ``length``, ``dim``,
``terms``, whether it is ``packed``, and whether it has a ``window`` (False if it does not say). Under ``forward`` and
``forward and backward`` it has the ``likely`` picoseconds per element.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.gpu.machine import ROOT
from benchmarks.gpu.results import KINDS
from benchmarks.gpu.worker import Row

MODEL = ROOT / "benchmarks/results/gpu-model.json"
NAMED = ("backend", "length", "dim", "terms", "packed", "window")


class Predictions:
    def __init__(self, estimates: list[dict[str, Any]]) -> None:
        self.estimates = {key_of(estimate): estimate for estimate in estimates}

    def of(self, row: Row) -> dict[str, float]:
        """Predicted milliseconds of a row of ours, by kind; empty where there is no estimate."""
        if row["what"] != "ours":
            return {}
        estimate = self.estimates.get(key_of(row), {})
        elements = max(row["tokens"] // row["length"], 1) * row["length"] * row["dim"]
        return {kind: 1e-9 * elements * estimate[words]["likely"] for kind, words in KINDS.items() if words in estimate}


def key_of(named: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(named.get(name, False) for name in NAMED)


def read(path: Path = MODEL) -> Predictions:
    """The predictions of a file; without the file there are none."""
    if not path.exists():
        return Predictions([])
    return Predictions(json.loads(path.read_text(encoding="utf-8"))["estimates"])
