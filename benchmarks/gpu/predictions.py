"""What the performance model says of a row, to stand beside the measurement: an estimate, made without a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.gpu.machine import ROOT
from benchmarks.gpu.results import KINDS
from benchmarks.gpu.worker import Row

MODEL = ROOT / "benchmarks/results/gpu-model.json"
NAMED = ("backend", "length", "dim", "terms", "window", "packed")  # what tells the model's figures apart


class Predictions:
    """Picoseconds an element by what names a row; none where there is no figure for it."""

    def __init__(self, figures: list[dict[str, Any]]) -> None:
        self.figures = figures

    def of(self, row: Row) -> dict[str, float]:
        """Milliseconds of a row of ours, by kind."""
        if row["what"] != "ours":
            return {}
        elements = max(row["tokens"] // row["length"], 1) * row["length"] * row["dim"]
        for figure in self.figures:
            if all(figure.get(name, row[name]) == row[name] for name in NAMED):
                return {kind: 1e-9 * elements * figure[kind] for kind in KINDS if kind in figure}
        return {}


def read(path: Path = MODEL) -> Predictions:
    """Without a file, without predictions."""
    if not path.exists():
        return Predictions([])
    return Predictions(json.loads(path.read_text(encoding="utf-8")).get("predictions", []))
