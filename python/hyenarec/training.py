"""Training that stops early, saves itself and resumes exactly.

A step's randomness is seeded by (seed, step) and an epoch's order by (seed, epoch), so the state of a run is its
weights, its optimiser and a few counters: a run that was killed at any moment and started again ends with the same
bits.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from hyenarec import checkpoint, environment
from hyenarec.baselines import Popularity
from hyenarec.cloze import hide_events
from hyenarec.config import ModelConfig
from hyenarec.data.batches import Batch, TrainingWindows
from hyenarec.data.splits import Split
from hyenarec.data.store import SequenceStore
from hyenarec.display import TrainingDisplay, console, training_display
from hyenarec.errors import UserError
from hyenarec.evaluation import Ranking, rank_targets
from hyenarec.files import write_text
from hyenarec.losses import full_cross_entropy, sampled_softmax
from hyenarec.mixers import MIXERS
from hyenarec.mixers.base import Mixer
from hyenarec.model import SequenceModel
from hyenarec.source import Source

LAST, BEST = "last.safetensors", "best.safetensors"


@dataclass(frozen=True)
class TrainingConfig:
    """How to train."""

    epochs: int = 200
    """Most epochs to train."""
    batch_size: int = 128
    """Training windows a step."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or a half cosine down to zero at the last epoch."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises from zero."""
    weight_decay: float = 0.01
    """AdamW's weight decay of matrices; vectors are not decayed, nor are mixers that start near the identity."""
    clip_norm: float = 5.0
    """Largest norm of the whole gradient; 0 switches clipping off."""
    loss: Literal["full", "sampled"] = "full"
    """Cross entropy over the full catalogue, or sampled softmax with logQ correction."""
    negatives: int = 1024
    """Negatives a step of the sampled softmax, drawn by training frequency."""
    bf16: bool = False
    """Compute matrix products in bfloat16 (autocast)."""
    metric: Literal["NDCG@5", "NDCG@10", "NDCG@20", "Recall@5", "Recall@10", "Recall@20", "MRR"] = "Recall@10"
    """Validation metric that chooses the best epoch."""
    patience: int = 10
    """Stop after this many evaluations without a better one."""
    evaluate_every: int = 1
    """Epochs between evaluations."""
    exclude_seen: bool = True
    """Evaluate recommending only items that are not in the user's input."""
    checkpoint_minutes: float = 5.0
    """Save inside an epoch after so many minutes, besides after every epoch."""
    seed: int = 0
    """Seed of weights, order, dropout and negatives."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train: auto takes a GPU where there is one."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience", "evaluate_every", "negatives"):
            if getattr(self, name) < 1:
                raise UserError(f"option {name}: {getattr(self, name)} is below 1")
        for name in ("weight_decay", "clip_norm", "warmup_steps", "checkpoint_minutes", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"option {name}: {getattr(self, name)} is negative")
        if not self.learning_rate > 0:
            raise UserError(f"option learning_rate: {self.learning_rate} is not positive")

    def torch_device(self) -> torch.device:
        available = torch.cuda.is_available()
        if self.device == "cuda" and not available:
            raise UserError("option device: cuda was asked for, but torch sees no CUDA device")
        return torch.device("cuda" if available and self.device != "cpu" else "cpu")

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of 0-based ``step`` of ``steps``."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.schedule == "constant":
            return self.learning_rate * warm
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / steps))


@dataclass
class Progress:
    """Where a run stands; with weights and optimiser the whole of its state."""

    step: int = 0
    epoch: int = 0
    batch: int = 0  # batches done in this epoch
    epoch_loss: float = 0.0  # sum over the epoch's predictions so far
    epoch_seconds: float = 0.0
    best: float = -math.inf
    best_epoch: int = -1
    stale: int = 0  # evaluations since the best
    finished: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)  # a row an epoch
    environment: dict[str, Any] = field(default_factory=dict)  # where training began: evaluating again leaves it alone


class Run:
    """A training run in a folder: ``last.safetensors``, ``best.safetensors``, ``config.json``, ``metrics.jsonl``,
    ``result.json``."""

    def __init__(
        self,
        folder: Path,
        store: SequenceStore,
        split: Split,
        model_config: ModelConfig,
        config: TrainingConfig,
        source: Source,
    ) -> None:
        self.folder, self.store, self.split, self.config = folder, store, split, config
        self.device = config.torch_device()
        self.description = {
            "model": asdict(model_config),
            "training": asdict(config),
            "source": asdict(source),
            "time_unit": store.time_unit,
            "data": store.describe(),
        }
        self.windows = TrainingWindows(store, split, model_config.max_length, config.batch_size)
        if not self.windows.tokens:
            raise UserError("nothing to train on: no user has two training events")
        torch.manual_seed(config.seed)
        self.model = SequenceModel(model_config, store.n_items).to(self.device)
        self.optimizer = _optimizer(self.model, config)
        self.loss = self._make_loss()
        self.progress = Progress(environment=environment.describe(self.device))
        self._resume()
        if MIXERS[model_config.mixer].knows_time and store.timestamps is None:
            console.print(
                f"{model_config.mixer}: the log has no timestamps; positions take their place", highlight=False
            )

    def train(self) -> dict[str, Any]:
        """Train to the end (or from where the folder's run stopped) and return the result that ``result.json``
        holds."""
        write_text(self.folder / "config.json", json.dumps(self.description, indent=2) + "\n")
        with training_display() as display:
            while not self.progress.finished:
                self._epoch(display)
        return self._finish()

    def validate(self, targets: Any) -> Ranking:
        self.model.eval()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
            return rank_targets(
                self.model,
                self.store,
                targets,
                max_length=self.model.config.max_length,
                exclude_seen=self.config.exclude_seen,
                device=self.device,
            )

    # One epoch

    def _epoch(self, display: TrainingDisplay) -> None:
        progress, config = self.progress, self.config
        steps = config.epochs * len(self.windows)
        display.start_epoch(progress.epoch, config.epochs, len(self.windows), progress.batch)
        self.model.train()
        loss_sum = torch.tensor(progress.epoch_loss, dtype=torch.float64, device=self.device)
        began = saved = time.perf_counter()
        before = progress.epoch_seconds
        for batch in self.windows.epoch(config.seed, progress.epoch, progress.batch):
            rate = config.rate(progress.step, steps)
            loss_sum += self.step(batch.to(self.device), rate) * len(batch.items)
            progress.step += 1
            progress.batch += 1
            display.advance()
            now = time.perf_counter()
            if now - saved > 60 * config.checkpoint_minutes:
                progress.epoch_loss, progress.epoch_seconds = float(loss_sum), before + now - began
                self._save_last()
                saved = now
        mean_loss = float(loss_sum) / self.windows.tokens
        if not math.isfinite(mean_loss):
            raise UserError(
                f"training diverged: epoch {progress.epoch + 1} has loss {mean_loss}; lower learning_rate "
                f"({config.learning_rate}) or clip_norm ({config.clip_norm})"
            )
        seconds = before + time.perf_counter() - began
        row = {"epoch": progress.epoch + 1, "step": progress.step, "loss": mean_loss, "seconds": seconds}
        self._end_epoch(row, display)

    def step(self, batch: Batch, rate: float) -> Tensor:
        """One optimiser step at learning rate ``rate``; the batch's mean loss."""
        torch.manual_seed(self.config.seed * 1_000_000_007 + self.progress.step)  # dropout and negatives of this step
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
            if self.model.mask is not None:
                batch = hide_events(batch)
            hidden = self.model(batch)  # (T, D)
            if batch.masked is not None:
                hidden = hidden[batch.masked]  # (P, D)
            assert batch.targets is not None
            loss = self.loss(hidden, batch.targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.config.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        return loss.detach()

    def _end_epoch(self, row: dict[str, Any], display: TrainingDisplay) -> None:
        progress, config = self.progress, self.config
        last = progress.epoch + 1 == config.epochs
        if last or (progress.epoch + 1) % config.evaluate_every == 0:
            metrics = self.validate(self.split.validation).metrics()
            row["validation"] = metrics
            value = metrics[config.metric]
            if value > progress.best:
                progress.best, progress.best_epoch, progress.stale = value, progress.epoch + 1, 0
                self._save_best()
            else:
                progress.stale += 1
        progress.history.append(row)
        progress.epoch += 1
        progress.batch, progress.epoch_loss, progress.epoch_seconds = 0, 0.0, 0.0
        progress.finished = last or progress.stale >= config.patience
        self._save_last()
        self._write_metrics()
        display.line(_epoch_line(row, config))

    def _make_loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        weight, bias = self.model.items.weight, self.model.bias
        if self.config.loss == "full":
            return lambda hidden, targets: full_cross_entropy(hidden, weight, bias, targets)
        # One pseudo-count, so that items seen only in evaluation can be drawn too.
        q = (Popularity(self.store, self.split).counts + 1).to(self.device)
        q /= q.sum()
        log_q = q.log()

        def sampled(hidden: Tensor, targets: Tensor) -> Tensor:
            negatives = torch.multinomial(q, self.config.negatives, replacement=True)
            return sampled_softmax(hidden, weight, bias, targets, negatives, log_q)

        return sampled

    # The folder

    def _model_tensors(self) -> dict[str, Tensor]:
        return checkpoint.with_prefix("model", self.model.state_dict())

    def _save_best(self) -> None:
        ids = {
            f"{role}.{name}": torch.from_numpy(array.copy())
            for role, ids in (("user_ids", self.store.user_ids), ("item_ids", self.store.item_ids))
            for name, array in ids.to_arrays().items()
        }
        checkpoint.save(self.folder / BEST, self._model_tensors() | ids, {"config": self.description})

    def _save_last(self) -> None:
        optimizer = checkpoint.with_prefix("optimizer", checkpoint.optimizer_tensors(self.model, self.optimizer))
        header = {"config": self.description, "progress": asdict(self.progress)}
        checkpoint.save(self.folder / LAST, self._model_tensors() | optimizer, header)

    def _resume(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / LAST
        if not path.exists():
            return
        tensors, header = checkpoint.load(path)
        differing = _differences(header["config"], json.loads(json.dumps(self.description)))
        if differing:
            raise UserError(
                f"{self.folder} holds a run with other options ({'; '.join(differing)}): choose another folder"
            )
        self.model.load_state_dict(checkpoint.without_prefix("model", tensors))
        checkpoint.restore_optimizer(self.model, self.optimizer, checkpoint.without_prefix("optimizer", tensors))
        self.progress = Progress(**header["progress"])

    def _write_metrics(self) -> None:
        history = self.progress.history
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in history))
        flat = [{**row, **row.get("validation", {})} for row in history]
        columns = list(dict.fromkeys(key for row in flat for key in row if key != "validation"))
        lines = [",".join(columns), *(",".join(str(row.get(column, "")) for column in columns) for row in flat)]
        write_text(self.folder / "metrics.csv", "\n".join(lines) + "\n")

    def _finish(self) -> dict[str, Any]:
        self._write_metrics()
        tensors, _ = checkpoint.load(self.folder / BEST)
        self.model.load_state_dict(checkpoint.without_prefix("model", tensors))
        test = self.validate(self.split.test)
        seconds = sorted(row["seconds"] for row in self.progress.history)
        result = {
            **self.description,
            "environment": self.progress.environment,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "epochs": self.progress.epoch,
            "best_epoch": self.progress.best_epoch,
            "seconds_per_epoch": seconds[len(seconds) // 2],
            "validation": self.progress.history[self.progress.best_epoch - 1]["validation"],
            "test": test.metrics(),
            "test_by_history_length": test.by_history_length(),
        }
        write_text(self.folder / "result.json", json.dumps(result, indent=2) + "\n")
        return result


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's ``metrics.jsonl``, one an epoch."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _optimizer(model: SequenceModel, config: TrainingConfig) -> torch.optim.AdamW:
    mixers = (module for module in model.modules() if isinstance(module, Mixer) and not module.decayed)
    spared = {parameter for mixer in mixers for parameter in mixer.parameters()}
    decayed = [p for p in model.parameters() if p.ndim >= 2 and p not in spared]
    free = [p for p in model.parameters() if p.ndim < 2 or p in spared]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def _epoch_line(row: dict[str, Any], config: TrainingConfig) -> str:
    text = f"epoch {row['epoch']:>3}/{config.epochs}  loss {row['loss']:.4f}"
    if "validation" in row:
        text += f"  validation {config.metric} {row['validation'][config.metric]:.4f}"
    return f"{text}  {row['seconds']:.1f} s"


def _differences(there: dict[str, Any], here: dict[str, Any], path: str = "") -> list[str]:
    """The leaves in which two configurations differ, each as ``name: value there, value here``."""
    found = []
    for key in sorted(there.keys() | here.keys()):
        name, old, new = f"{path}{key}", there.get(key), here.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{name}.")
        elif old != new:
            found.append(f"{name}: {old} there, {new} here")
    return found
