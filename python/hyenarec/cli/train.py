"""``hyenarec train``: one recommender on one log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import tyro

from hyenarec.cli.options import Columns, DataPath, ItemFeatures, refuse_options_of_logs
from hyenarec.config import ModelConfig, TrainingConfig, from_json, refuse_unused
from hyenarec.data.store import is_store


@dataclass(frozen=True)
class Train:
    """Train a recommender on a log or a prepared store.

    Run the same command again after an interruption: it goes on from the last checkpoint and ends with the same
    weights. With --from it starts from another run's best model instead of random weights, on the log as it has grown
    or on its latest part alone, with new users and items. It then trains only on slices of histories with later events.
    """

    data: DataPath
    """Log (Parquet, CSV, TSV, JSON lines, RecBole .inter, folder of Parquet parts, - for standard input) or store."""
    out: Path
    """Folder of the run: checkpoints, metrics, curve, result."""
    start: Annotated[Path | None, tyro.conf.arg(name="from", metavar="RUN")] = None
    """Run folder or checkpoint file to start from. Options that you do not give are those of that run."""
    features: Annotated[ItemFeatures, tyro.conf.arg(name="")] = field(default_factory=ItemFeatures)
    split: Literal["leave-one-out", "temporal"] = "leave-one-out"
    """leave-one-out: each user's last event tests, the one before it validates; temporal: two cuts in time, the same
    for everyone."""
    model: Annotated[ModelConfig, tyro.conf.arg(name="")] = field(default_factory=ModelConfig)
    training: Annotated[TrainingConfig, tyro.conf.arg(name="")] = field(default_factory=TrainingConfig)
    columns: Annotated[Columns, tyro.conf.arg(name="")] = field(default_factory=Columns)

    @classmethod
    def default(cls, arguments: Sequence[str]) -> Train | None:
        """Defaults for options that ``arguments`` do not give: with --from those of that run, else None for the usual
        ones."""
        given = dict(pairwise(part for argument in arguments for part in argument.split("=", 1)))
        if "--from" not in given:
            return None
        from hyenarec.source import Source
        from hyenarec.trained import load_trained

        path = Path(given["--from"])
        config = load_trained(path).config
        training = from_json(TrainingConfig, {**config["training"], "device": "auto"}, f"{path}: training")
        source = Source(**config["source"])
        columns = Columns(**{option.name: getattr(source, option.name) for option in fields(Columns)})
        return cls(
            data=tyro.MISSING,
            out=tyro.MISSING,
            start=path,
            split=source.split,
            model=from_json(ModelConfig, config["model"], f"{path}: model"),
            training=training,
            columns=Columns() if any(is_store(Path(argument)) for argument in arguments) else columns,
        )

    def run(self) -> None:
        from hyenarec import distributed
        from hyenarec.continuing import Start, load_start
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
        self.features.refuse_unused(self.training.shard_items)
        trained = load_start(self.start, self.model) if self.start else None
        source = Source(str(self.data), self.split, **asdict(self.columns))
        store, split = load_source(source)
        start = None
        if trained is not None:
            start, store = Start.of(trained, store)
        training = self.training.for_items(store.n_items)
        refuse_unused(self.model, training, (self.model.mixer,))
        show_log(store)
        if start is not None:
            console.print(
                f"going on from {self.start}; new users: {start.new_users:,}, new items: {start.new_items:,}",
                highlight=False,
            )
        features = self.features.of(store, self.columns, trained)
        if trained is not None and trained.features is not None and features is None:
            console.print(f"{self.start} was trained with --item-features; rows go on as they are, without features")
        show_loss(self.training, store)
        announce_repeats(store, split, training)
        result = train(store, split, self.model, training, source, self.out, start, features)
        rows = [
            {"model": self.model.mixer, **result_cells(result)},
            *baseline_rows(store, split, self.model, self.training),
        ]
        show_table(f"test, {self.data.name}", ("model", *COLUMNS), rows)
        console.print(f"written to {self.out}", highlight=False)
        distributed.stop()
