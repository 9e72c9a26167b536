"""``hyenarec train``: one recommender on one log."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from hyenarec.cli.options import Columns, DataPath, refuse_options_of_logs
from hyenarec.config import ModelConfig, TrainingConfig, refuse_unused


@dataclass(frozen=True)
class Train:
    """Train a recommender on a log or a prepared store.

    Run the same command again after an interruption: it goes on from the last checkpoint and ends with the same
    weights.
    """

    data: DataPath
    """Log (Parquet, CSV, TSV, JSON lines, RecBole .inter, folder of Parquet parts, - for standard input) or store."""
    out: Path
    """Folder of the run: checkpoints, metrics, curve, result."""
    split: Literal["leave-one-out", "temporal"] = "leave-one-out"
    """Last event of each user for testing and the one before for validation, or cuts in time for everyone."""
    model: Annotated[ModelConfig, tyro.conf.arg(name="")] = field(default_factory=ModelConfig)
    training: Annotated[TrainingConfig, tyro.conf.arg(name="")] = field(default_factory=TrainingConfig)
    columns: Annotated[Columns, tyro.conf.arg(name="")] = field(default_factory=Columns)

    def run(self) -> None:
        from hyenarec import distributed
        from hyenarec.display import console, show_table
        from hyenarec.experiments import (
            COLUMNS,
            announce_repeats,
            baseline_rows,
            result_cells,
            show_log,
            show_loss,
            train,
        )
        from hyenarec.run_folder import check_folder
        from hyenarec.source import Source, load_source

        refuse_unused(self.model, self.training, (self.model.mixer,))
        distributed.start()
        console.quiet = not distributed.is_main()
        check_folder(self.out)
        refuse_options_of_logs(self.data, self.columns)
        source = Source(str(self.data), self.split, **asdict(self.columns))
        store, split = load_source(source)
        training = self.training.for_items(store.n_items)
        refuse_unused(self.model, training, (self.model.mixer,))
        show_log(store)
        show_loss(self.training, store)
        announce_repeats(store, split, training)
        result = train(store, split, self.model, training, source, self.out)
        rows = [
            {"model": self.model.mixer, **result_cells(result)},
            *baseline_rows(store, split, self.model, self.training),
        ]
        show_table(f"test, {self.data.name}", ("model", *COLUMNS), rows)
        console.print(f"written to {self.out}", highlight=False)
        distributed.stop()
