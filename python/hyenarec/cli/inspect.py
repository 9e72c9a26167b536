"""``hyenarec inspect``: what the long filters of a model learned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hyenarec.cli.options import RunPath


@dataclass(frozen=True)
class Inspect:
    """Draw the learned long filters of a hyena checkpoint."""

    run_path: RunPath
    """Run folder or checkpoint file."""
    out: Path
    """PNG file to write."""

    def run(self) -> None:
        from hyenarec.display import console
        from hyenarec.files import PNG, refuse_foreign
        from hyenarec.plots import learned_filters
        from hyenarec.recommendation import Recommender

        refuse_foreign(self.out, PNG)
        learned_filters(Recommender.load(self.run_path).model, self.out)
        console.print(f"{self.out}: learned filters")
