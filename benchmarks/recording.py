"""What the recommender's benchmarks leave behind: JSON with what it takes to measure it again."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hyenarec import environment
from hyenarec.display import console
from hyenarec.files import write_text

RESULTS = Path(__file__).parent / "results"


def write_report(path: Path, title: str, content: Mapping[str, Any], device: torch.device | None = None) -> None:
    """Write ``content`` under its title, with this process's command, machine (the CPU by default), versions and
    revision."""
    report = {
        "title": title,
        "command": shlex.join(["python", *sys.argv]),
        "environment": environment.describe(device or torch.device("cpu")),
        **content,
    }
    write_text(path, json.dumps(report, indent=2) + "\n")
    console.print(f"written to {path.name}", highlight=False)
