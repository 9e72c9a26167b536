"""A search for options by validation, kept on disk so that a kill costs at most the current epoch.

The search is an optuna study in a SQLite file; every trial is a run in a folder of its own, which resumes bit for bit.
A trial's options depend only on its number and on the results of the trials before it, so a search that was stopped and
resumed tries what it would have tried.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from sqlalchemy import URL

from hyenarec.config import FULL_LOSS_ITEMS, HyenaConfig, ModelConfig, TrainingConfig
from hyenarec.data.store import SequenceStore
from hyenarec.errors import DivergedError, UserError

STUDY = "study.sqlite"
LENGTHS = (25, 50, 100, 200, 400, 800, 1600)
DIVERGED = 0.0  # the value of a trial whose training diverged: the lowest of every metric
WORTH_TELLING = 4  # the fewest different results from which to say what mattered

Options = tuple[ModelConfig, TrainingConfig]


@dataclass(frozen=True)
class Space:
    """What is searched: learning rate, dropout, weight decay, length of the history and loss; and gates, since leaving
    them out is better where events are few (benchmarks/results/accuracy-beauty.json: .036 against .034)."""

    lengths: tuple[int, ...]
    losses: tuple[str, ...]
    gates: tuple[str, ...] = ()

    @classmethod
    def of(cls, store: SequenceStore, model: ModelConfig) -> Space:
        """At most four lengths, up to the first that 95 of 100 histories do not exceed; the losses that this catalogue
        can afford; and gates, if ``model`` may have them and leaves them at their default."""
        free = model.mixer == "hyena" and model.hyena.gate == HyenaConfig.gate and model.embedding == "shared"
        long = float(np.quantile(np.diff(store.offsets), 0.95))
        enough = next((place for place, length in enumerate(LENGTHS) if length >= long), len(LENGTHS) - 1)
        return cls(
            LENGTHS[max(0, enough - 3) : enough + 1],
            ("full", "sampled") if store.n_items <= FULL_LOSS_ITEMS else ("sampled",),
            (HyenaConfig.gate, "none") if free else (),
        )

    def suggest(self, trial: optuna.Trial, base: Options) -> Options:
        """``base`` with a trial's options."""
        model, training = base
        if self.gates:
            gate = trial.suggest_categorical("gate", self.gates)
            model = replace(model, hyena=replace(model.hyena, gate=gate))  # type: ignore[arg-type]
        return (
            replace(
                model,
                dropout=round(trial.suggest_float("dropout", 0.0, 0.6, step=0.1), 1),
                max_length=trial.suggest_categorical("max_length", self.lengths),
            ),
            replace(
                training,
                learning_rate=trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True),
                weight_decay=trial.suggest_float("weight_decay", 1e-3, 1.0, log=True),
                loss=trial.suggest_categorical("loss", self.losses),  # type: ignore[arg-type]
            ),
        )


class Search:
    """The trials in ``folder``, earlier ones included."""

    def __init__(self, folder: Path, space: Space, base: Options, description: Mapping[str, Any]) -> None:
        """``description`` is what else the results depend on, as JSON. Raises :class:`UserError` for a folder with
        another search, or whose study file is not one."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder, self.space, self.base = folder, space, base
        url = URL.create("sqlite", database=str(folder / STUDY)).render_as_string()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.study = optuna.create_study(
                study_name="hyenarec", storage=url, direction="maximize", load_if_exists=True
            )
        except Exception as error:  # of the system, of SQLite, or of optuna's tables
            reason = str(error.__cause__ or error).splitlines()[0]
            raise UserError(f"option out: cannot keep a search in {folder / STUDY}: {reason}") from error
        ours = {"space": asdict(space), "model": asdict(base[0]), "training": asdict(base[1]), **description}
        ours = json.loads(json.dumps(ours))
        theirs = self.study.user_attrs.get("search")
        if theirs is None:
            self.study.set_user_attr("search", ours)
        elif theirs != ours:
            differing = ", ".join(name for name in ours | theirs if theirs.get(name) != ours.get(name))
            raise UserError(f"{folder} holds a search of other options or data ({differing}): choose another folder")

    @property
    def done(self) -> list[optuna.trial.FrozenTrial]:
        """Trials with a result, in their order."""
        return self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))

    def run(self, trials: int, train: Callable[[int, Options, Path], float]) -> None:
        """Run trials until there are ``trials`` in all; ``train(number, options, folder)`` returns the value to
        maximise."""
        stopped = self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
        for one in stopped:
            self.study.tell(one.number, state=optuna.trial.TrialState.FAIL)  # the next trial repeats it
        while len(self.done) < trials:
            number = len(self.done)
            self.study.sampler = optuna.samplers.TPESampler(
                seed=1000 * self.base[1].seed + number, n_startup_trials=max(5, trials // 4)
            )
            trial = self.study.ask()
            options = self.space.suggest(trial, self.base)
            try:
                value = train(number, options, self.folder / f"trial-{number:03}")
            except DivergedError:
                value = DIVERGED
            self.study.tell(trial, value)

    def best(self) -> Options:
        """The options of the best trial; of equal ones, of the first."""
        return self.space.suggest(optuna.trial.FixedTrial(self.study.best_params), self.base)  # type: ignore[arg-type]

    def importances(self) -> dict[str, float]:
        """How much of the difference between good and bad trials each option explains, the most first, by PED-ANOVA
        (Watanabe, Bansal & Hutter 2023); empty where there are too few trials to tell."""
        if len({trial.value for trial in self.done}) < WORTH_TELLING:
            return {}
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        return dict(optuna.importance.get_param_importances(self.study, evaluator=evaluator))
