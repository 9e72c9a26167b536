from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from generated import make_store

from hyenarec import checkpoint
from hyenarec.config import (
    HYENA_RANGES,
    TRAINING_RANGES,
    AttentionConfig,
    HyenaConfig,
    ModelConfig,
    TrainingConfig,
)
from hyenarec.data.splits import leave_one_out
from hyenarec.data.store import SequenceStore
from hyenarec.errors import UserError
from hyenarec.mixers import MIXERS
from hyenarec.run_folder import LAST, Run, read_history
from hyenarec.source import Source
from hyenarec.trained import BEST
from hyenarec.training import Trainer

MODEL = ModelConfig(dim=8, max_length=8, blocks=1)
CONFIG = TrainingConfig(epochs=3, batch_size=4, warmup_steps=4, learning_rate=1e-2, exclude_seen=False, device="cpu")
SOURCE = Source("generated")


def train(folder: Path, store: SequenceStore, **options: Any) -> dict[str, Any]:
    model = replace(MODEL, **{name: options.pop(name) for name in ("mixer", "dropout") if name in options})
    return Run(folder, store, leave_one_out(store), model, replace(CONFIG, **options), SOURCE).train()


def weights(folder: Path, name: str = LAST) -> dict[str, torch.Tensor]:
    return checkpoint.without_prefix("model", checkpoint.load(folder / name)[0])


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


SAMPLED = {"loss": "sampled", "negatives": 16, "bf16": True, "schedule": "cosine"}
# By default each mixer once, and one of them also with options that do not depend on the mixer; `make test-all` runs
# every mixer with both.
TRAININGS = [(mixer, {}) for mixer in MIXERS] + [
    pytest.param(mixer, SAMPLED, marks=() if mixer == "hyena" else pytest.mark.slow) for mixer in MIXERS
]


@pytest.mark.parametrize(("mixer", "options"), TRAININGS)
def test_training_lowers_the_loss_and_writes_its_folder(mixer: str, options: dict[str, Any], tmp_path: Path) -> None:
    result = train(tmp_path / "run", make_store(), mixer=mixer, epochs=3, **options)
    history = read_history(tmp_path / "run")
    assert len(history) == result["epochs"]
    assert history[-1]["loss"] < history[0]["loss"]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "config.json", "metrics.jsonl", "timing.json", "result.json", LAST, BEST,
    }  # fmt: skip
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    assert result["test"]["HR@10"] == result["test"]["Recall@10"] > 0
    validation = [row["validation"] for row in history]
    best = max(range(len(history)), key=lambda row: (validation[row]["NDCG@10"], validation[row]["MRR"]))
    assert result["best_epoch"] == best + 1
    timing = json.loads((tmp_path / "run" / "timing.json").read_text())
    assert len(timing["epochs"]) == len(history) and min(timing["epochs"]) > 0 == timing["current"]


def test_two_runs_agree_to_the_bit_and_another_seed_does_not(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tmp_path / name, make_store(), seed=seed)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


def interrupt_after_one_epoch(end_epoch: Any) -> Any:
    def ended(self: Trainer, *args: Any) -> None:
        end_epoch(self, *args)
        raise KeyboardInterrupt

    return ended


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    store = make_store()
    first = train(tmp_path, store)
    stamp = (tmp_path / LAST).stat().st_mtime_ns
    assert train(tmp_path, store) == first
    assert (tmp_path / LAST).stat().st_mtime_ns == stamp


def test_another_configuration_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    train(tmp_path, make_store())
    with pytest.raises(
        UserError, match=r"other options \(model.dropout: 0.2 there, 0.5 here; training.seed: 0 there, 3 here\)"
    ):
        train(tmp_path, make_store(), dropout=0.5, seed=3)
    with pytest.raises(UserError, match=r"data\.checksum"):
        train(tmp_path, make_store(seed=9))


def test_early_stopping_keeps_the_best(tmp_path: Path) -> None:
    result = train(tmp_path, make_store(), epochs=60, learning_rate=0.05, patience=2)
    history = read_history(tmp_path)
    values = [row["validation"]["NDCG@10"] for row in history]
    assert len(history) < 60 and result["best_epoch"] == len(history) - 2
    assert max(values) == values[result["best_epoch"] - 1] == result["validation"]["NDCG@10"]


def test_schedules() -> None:
    constant, cosine = (
        TrainingConfig(warmup_steps=10, schedule=name, learning_rate=1.0) for name in ("constant", "cosine")
    )  # type: ignore[arg-type]
    assert constant.rate(0, 100) == pytest.approx(0.1) and constant.rate(9, 100) == constant.rate(99, 100) == 1.0
    assert cosine.rate(50, 100) == pytest.approx(0.5) and cosine.rate(99, 100) < 1e-3
    assert cosine.rate(0, 100) == pytest.approx(0.1)


@pytest.mark.parametrize("mixer", ["hyena", "attention"])
def test_what_decays(mixer: str) -> None:
    store = make_store()
    run = Trainer(store, leave_one_out(store), replace(MODEL, mixer=mixer), CONFIG)
    decayed, free = run.optimizer.param_groups
    assert decayed["weight_decay"] == CONFIG.weight_decay and free["weight_decay"] == 0
    decays = {name for name, p in run.model.named_parameters() if any(p is q for q in decayed["params"])}
    matrices = {name for name, p in run.model.named_parameters() if p.ndim >= 2}
    assert any(".mixer." in name for name in matrices) and decays == matrices
    assert len(decays) + len(free["params"]) == len(list(run.model.parameters()))


def test_divergence_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"training diverged in epoch 1: the loss is no number from step \d+ on; try a low"
    ):
        train(tmp_path, make_store(), learning_rate=1e30, clip_norm=0.0, warmup_steps=0)


@pytest.mark.parametrize("mixer", ["hytrec", "fuxi_linear", "gru"])
def test_a_log_without_times_is_said_in_one_line(
    mixer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = replace(make_store(), timestamps=None)
    result = train(tmp_path / "without", store, mixer=mixer, epochs=1)
    line = f"{mixer}: the log has no timestamps; positions take their place\n"
    assert (line in capsys.readouterr().out) == MIXERS[mixer].knows_time
    assert 0 < result["test"]["MRR"] <= 1
    train(tmp_path / "with", make_store(), mixer=mixer, epochs=1)
    assert "positions" not in capsys.readouterr().out


def test_nothing_to_learn_from(tmp_path: Path) -> None:
    store = make_store(longest=2)
    with pytest.raises(UserError, match="no user has the three events"):
        train(tmp_path / "run", store)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("option", "value"), [("epochs", 0), ("weight_decay", -1.0), ("learning_rate", 0.0)])
def test_bad_options_are_one_line(option: str, value: float) -> None:
    with pytest.raises(UserError, match=f"option {option}: {value} is"):
        TrainingConfig(**{option: value})
    assert math.isfinite(value)


NUMBERS = [
    (config, option.name)
    for config in (HyenaConfig, AttentionConfig, ModelConfig, TrainingConfig)
    for option in fields(config)
    if option.type in ("int", "float", "int | None")
]


@pytest.mark.parametrize(("config", "option"), NUMBERS, ids=[f"{config.__name__}.{name}" for config, name in NUMBERS])
def test_every_number_has_a_range(config: type[Any], option: str) -> None:
    """NaN, infinities and huge or negative numbers are refused, and zero is accepted only where it makes sense."""
    assert len(NUMBERS) == 22
    for value in (-1, math.nan, math.inf, -math.inf, 10**400):
        with pytest.raises(UserError, match=rf"^option \S*{option}: [^\n]+$"):
            config(**{option: value})
    if option in ("warmup_steps", "weight_decay", "clip_norm", "checkpoint_minutes", "seed", "dropout"):
        assert getattr(config(**{option: 0}), option) == 0
    else:
        with pytest.raises(UserError, match=rf"option \S*{option}: 0 is below"):
            config(**{option: 0})


def largest(config: type[Any], ranges: dict[str, Any]) -> list[Any]:
    return [config(**{option: high}) for option, (_, high) in ranges.items()]


@pytest.mark.parametrize("training", largest(TrainingConfig, TRAINING_RANGES), ids=str)
def test_the_largest_options_of_training_work(training: TrainingConfig) -> None:
    store = make_store()
    trainer = Trainer(store, leave_one_out(store), MODEL, replace(training, loss="sampled", device="cpu"))
    batch = next(trainer.slices.epoch(training.seed, 0))
    assert trainer.step(batch, training.rate(0, 10)).isfinite()


@pytest.mark.parametrize("hyena", largest(HyenaConfig, HYENA_RANGES), ids=str)
def test_the_largest_options_of_hyena_work(hyena: HyenaConfig) -> None:
    store = make_store()
    trainer = Trainer(store, leave_one_out(store), replace(MODEL, dim=2, hyena=hyena), CONFIG)
    assert trainer.step(next(trainer.slices.epoch(0, 0)), 1e-3).isfinite()
