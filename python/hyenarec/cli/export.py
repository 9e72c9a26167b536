"""``hyenarec export``: a trained model as files that run without this package."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from hyenarec.cli.options import NewItems, RunPath


@dataclass(frozen=True)
class Export:
    """Write a trained model as torch.export programs, packages that C++ runs without Python, and ONNX.

    Each file is read back and compared with the model on random histories. The folder also has export.json, which names
    the inputs, the tensors of a user's state and the items.
    """

    run_path: RunPath
    """Run folder or checkpoint file."""
    out: Path
    """Folder for the files; created if missing."""
    formats: tuple[Literal["program", "package", "onnx"], ...] = ("program", "package", "onnx")
    """What to write. Packages need a C++ compiler, ONNX the extra hyenarec[export]."""
    k: int = 10
    """Items that a program returns."""
    state: Literal["compact", "exact"] = "compact"
    """Form of a user's state between steps: compact is smaller if the mixer is hyena and its horizon long."""
    new_items: Annotated[NewItems, tyro.conf.arg(name="")] = field(default_factory=NewItems)
    int8: bool = False
    """Round weight matrices to 8 bits: files about a quarter as large, and nearly the same recommendations."""

    def run(self) -> None:
        from hyenarec.display import complain, console, show_table
        from hyenarec.exporting import TOLERANCE, export_model
        from hyenarec.recommendation import Recommender

        recommender = self.new_items.join(Recommender.load(self.run_path))
        exported = export_model(
            recommender, self.out, formats=self.formats, top=self.k, compact=self.state == "compact", int8=self.int8
        )
        rows = [
            {"file": file.path.name, "kB": f"{file.size / 1e3:,.0f}", "difference": f"{file.difference:.0e}"}
            for file in exported.files
        ]
        for reason in exported.left_out:
            complain(f"left out: {reason}")
        show_table(f"written to {self.out}", ("file", "kB", "difference"), rows, text=("file",))
        console.print(f"difference: of scores from the model's, relative to the largest score; at most {TOLERANCE:.0e}")
