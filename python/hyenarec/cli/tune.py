"""``hyenarec tune``: a small search for options, then training with the best."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from hyenarec.cli.options import Columns, DataPath, ItemFeatures, refuse_options_of_logs
from hyenarec.config import ModelConfig, TrainingConfig
from hyenarec.errors import UserError

IMPORTANCES, BEST = "importances.png", "best"
SHOWN = 10  # trials


@dataclass(frozen=True)
class TunedModel(ModelConfig):
    """Shape of all models."""

    dropout: tyro.conf.Suppress[tyro.conf.Fixed[float]] = ModelConfig.dropout
    max_length: tyro.conf.Suppress[tyro.conf.Fixed[int]] = ModelConfig.max_length


@dataclass(frozen=True)
class TunedTraining(TrainingConfig):
    """How to train all of them, in one process."""

    learning_rate: tyro.conf.Suppress[tyro.conf.Fixed[float]] = TrainingConfig.learning_rate
    weight_decay: tyro.conf.Suppress[tyro.conf.Fixed[float]] = TrainingConfig.weight_decay
    loss: tyro.conf.Suppress[tyro.conf.Fixed[Literal["auto", "full", "sampled"]]] = TrainingConfig.loss
    shard_items: tyro.conf.Suppress[tyro.conf.Fixed[bool]] = False


@dataclass(frozen=True)
class Tune:
    """Search for the best learning rate, dropout, weight decay, length and loss, then train with them.

    With the mixer hyena it also tries models without gates, if --hyena.gate is left at its default. Only the validation
    metric decides what is best. To go on after an interruption, or with more --trials, run the same command again."""

    data: DataPath
    """Log (Parquet, CSV, TSV, JSON lines, RecBole .inter, folder of Parquet parts) or store."""
    out: Path
    """Folder of the search: study.sqlite, one run per trial, importances.png, and best, the final run."""
    trials: int = 20
    """Trials in total, with those already in the folder."""
    trial_epochs: int = 10
    """Most epochs of a trial; --epochs is for the final training."""
    split: Literal["leave-one-out", "temporal"] = "leave-one-out"
    """leave-one-out: each user's last event tests, the one before it validates; temporal: two cuts in time, the same
    for everyone."""
    features: Annotated[ItemFeatures, tyro.conf.arg(name="")] = field(default_factory=ItemFeatures)
    model: Annotated[TunedModel, tyro.conf.arg(name="")] = field(default_factory=TunedModel)
    training: Annotated[TunedTraining, tyro.conf.arg(name="")] = field(default_factory=TunedTraining)
    columns: Annotated[Columns, tyro.conf.arg(name="")] = field(default_factory=Columns)

    def run(self) -> None:
        for option, value in (("trials", self.trials), ("trial_epochs", self.trial_epochs)):
            if value < 1:
                raise UserError(f"option {option}: {value} is below 1")
        try:
            from hyenarec.tuning import Search, Space
        except ModuleNotFoundError as error:
            raise UserError(f"tune needs {error.name}: pip install 'hyenarec[tune]'") from error
        from hyenarec.display import console, show_table
        from hyenarec.experiments import COLUMNS, baseline_rows, result_cells, show_log, train
        from hyenarec.files import PNG, alone_in, refuse_foreign
        from hyenarec.run_folder import check_folder
        from hyenarec.source import Source, load_source

        check_folder(self.out)
        refuse_foreign(self.out / IMPORTANCES, PNG)
        refuse_options_of_logs(self.data, self.columns)
        self.features.refuse_unused(self.training.shard_items)
        source = Source(str(self.data), self.split, **asdict(self.columns))
        store, split = load_source(source)
        show_log(store)
        model = ModelConfig(**{option.name: getattr(self.model, option.name) for option in fields(ModelConfig)})
        training = TrainingConfig(**{o.name: getattr(self.training, o.name) for o in fields(TrainingConfig)})
        metric = training.metric
        features = self.features.of(store, self.columns)
        data: dict[str, Any] = {"data": store.fingerprint(), "split": self.split}
        if features is not None:
            data["item features"] = features.describe()
        search = Search(self.out, Space.of(store, model), (model, replace(training, epochs=self.trial_epochs)), data)
        if search.done:
            console.print(f"{len(search.done)} trials were done before")

        def validated(number: int, options: tuple[ModelConfig, TrainingConfig], folder: Path) -> float:
            console.rule(f"trial {number + 1} of {self.trials}")
            return float(train(store, split, *options, source, folder, features=features)["validation"][metric])

        with alone_in(self.out):
            search.run(self.trials, validated)
        ranked = sorted(enumerate(search.done, 1), key=lambda trial: (-(trial[1].value or 0.0), trial[0]))
        rows: list[dict[str, Any]] = [
            {"trial": number, **{name: _short(value) for name, value in trial.params.items()}, metric: trial.value}
            for number, trial in ranked[:SHOWN]
        ]
        show_table(f"the best of {len(ranked)} trials, by validation", tuple(rows[0]), rows)
        importances = search.importances()
        if importances:
            from hyenarec.plots import importance_bars

            shares = [{"option": name, "share": share} for name, share in importances.items()]
            show_table("what mattered: shares of the differences that options explain", ("option", "share"), shares)
            importance_bars(importances, self.out / IMPORTANCES)
        else:
            console.print("too few different results to tell which options mattered; more --trials may")
        best_model, best_training = search.best()
        console.rule("training with the best")
        final = replace(best_training, epochs=training.epochs)
        result = train(store, split, best_model, final, source, self.out / BEST, features=features)
        rows = [{"model": model.mixer, **result_cells(result)}, *baseline_rows(store, split, best_model, final)]
        show_table(f"test, {self.data.name}", ("model", *COLUMNS), rows)
        console.print(f"written to {self.out / BEST}", highlight=False)


def _short(value: Any) -> Any:
    return f"{value:.2g}" if isinstance(value, float) else value
