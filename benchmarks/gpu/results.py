"""The result file of the GPU suite, whole on disk after every row, in the format of
:mod:`benchmarks.harness.recording`.

It is written without that module, which needs the recommender: a GPU machine may have nothing but torch and triton.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.worker import Row

TITLE = "gated Legendre convolution and what it stands against, on a GPU"
TOLERANCE = 2e-2  # of bfloat16, norm-wise
KINDS = {"forward": "forward", "training": "forward and backward"}


class Results:
    """``gpu.json`` in a folder."""

    def __init__(self, folder: Path, environment: dict[str, Any], settings: dict[str, Any]) -> None:
        self.path, self.rows = folder / "gpu.json", list[Row]()
        self.head = {
            "suite": "gpu",
            "title": TITLE,
            "command": " ".join((sys.argv[0], shlex.join(sys.argv[1:]))).strip(),
            "environment": environment,
            "settings": settings,
        }
        self.rest: dict[str, Any] = {}

    def add(self, row: Row) -> None:
        self.rows.append(row)
        self.save()

    def save(self, **rest: Any) -> None:
        """Writes the file; it also has ``rest`` from now on."""
        self.rest |= rest
        content = self.head | {"cases": cases(self.rows), "rows": self.rows} | self.rest
        write_whole(self.path, json.dumps(content, indent=1) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Writes the file whole or not at all, even if the machine is taken away meanwhile."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def cases(rows: list[Row]) -> list[dict[str, Any]]:
    """Cases of every row of ours that has an error: forward, and forward with backward, beside the rivals' times."""
    found = []
    for kind, words in KINDS.items():
        for row in rows:
            if row["what"] == "ours" and kind in row and "error" in row:
                error = max(row["error"].values())
                found.append(
                    {
                        "what": f"Gated Legendre convolution, {words}",
                        "shape": shape_of(row),
                        "ms": row[kind]["device"],
                        "rivals": {name: other[kind]["device"] for name, other in beside(row, rows, kind).items()},
                        "check": {"against": "float64 reference", "error": error, "tolerance": TOLERANCE},
                    }
                )
    return found


def beside(row: Row, rows: list[Row], kind: str) -> dict[str, Row]:
    """By name, the rivals' rows of the same tokens, length and width that have a figure of this kind."""
    same = ("tokens", "length", "dim")
    return {
        other["rival"]: other
        for other in rows
        if other["what"] == "rival" and kind in other and all(other[name] == row[name] for name in same)
    }


def shape_of(row: Row) -> str:
    """The shape of a row of ours, in words."""
    words = [f"{max(row['tokens'] // row['length'], 1):,} x {row['length']:,} x {row['dim']}", row["backend"]]
    words += [f"{row['terms']} terms"] + ["window"] * row["window"] + ["packed" if row["packed"] else "padded"]
    return ", ".join(words)
