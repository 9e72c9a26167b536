"""The training loop: epochs of steps, validation after them, early stopping. It writes nothing to disk.

A step's randomness is seeded by (seed, step) and an epoch's order by (seed, epoch), so the state of a training is its
weights, its optimiser and a few counters: one that is stopped between two steps and resumed
(:mod:`hyenarec.run_folder`) ends with the same bits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from hyenarec import distributed
from hyenarec.baselines import Popularity
from hyenarec.cloze import hide_events
from hyenarec.config import ModelConfig, TrainingConfig
from hyenarec.continuing import known_until, take_over
from hyenarec.data.batches import Batch, TrainingSlices
from hyenarec.data.item_features import Features
from hyenarec.data.splits import Split
from hyenarec.data.store import SequenceStore
from hyenarec.display import TrainingDisplay, training_display
from hyenarec.environment import check_backend, check_memory
from hyenarec.errors import DivergedError, ScoreError, UserError, expect
from hyenarec.evaluation import Ranking, Scorer, rank_targets
from hyenarec.featured_items import FeaturedItems
from hyenarec.item_rows import SampledRows, SampledStep
from hyenarec.losses import full_cross_entropy, sampled_softmax
from hyenarec.model import SequenceModel
from hyenarec.pace import TOLD_FROM, Pace, duration
from hyenarec.repeats import settled
from hyenarec.stopping import CheckStop, Interruptible, stop_requests
from hyenarec.trained import Trained

# With so many scores per epoch the full loss is timed beforehand: on one core of a Sapphire Rapids Xeon, 1e11 take
# about ten minutes at 64 channels.
TIMED_FROM_SCORES = 1e11
WORTH_SAYING = 0.8  # if another loss takes less than this share of an epoch's time, a line names it
CHECKED_EVERY = 100  # steps between checks that the loss is still finite, for which the host waits for a GPU


@dataclass
class Progress:
    """Where a training stands; with weights and optimiser its whole state. Equal trainings have equal progress."""

    step: int = 0
    epoch: int = 0
    batch: int = 0  # batches done in this epoch
    epoch_loss: float = 0.0  # sum over the epoch's predictions so far
    best: list[float] = field(default_factory=list)  # the metric, MRR and minus the loss of the best epoch
    best_epoch: int = 0  # 1-based; 0 before the first evaluation
    stale: int = 0  # evaluations since the metric, or MRR where the metric is the same, rose
    history: list[dict[str, Any]] = field(default_factory=list)  # one row per epoch


@dataclass
class Timing:
    """Seconds of training, kept apart because equal trainings differ in them."""

    epochs: list[float] = field(default_factory=list)
    current: float = 0.0  # of the epoch that has begun and not ended

    def median(self) -> float:
        return sorted(self.epochs)[len(self.epochs) // 2] if self.epochs else 0.0


class Saver(Protocol):
    """What saves a training; the trainer calls it when it is time."""

    def save_best(self) -> None: ...

    def save_last(self) -> None: ...


class Trainer:
    """A model in training on a store's slices: from random weights, or with ``start`` from trained ones, and then on
    the slices that hold later events (:mod:`hyenarec.continuing`)."""

    def __init__(
        self,
        store: SequenceStore,
        split: Split,
        model_config: ModelConfig,
        config: TrainingConfig,
        start: Trained | None = None,
        features: Features | None = None,
    ) -> None:
        """``features`` are those of the items of ``store``, encoded like those of ``start`` if that has some."""
        expect(store, SequenceStore, "store", "a SequenceStore")
        expect(split, Split, "split", "a Split")
        expect(model_config, ModelConfig, "model_config", "a ModelConfig")
        expect(config, TrainingConfig, "config", "a TrainingConfig")
        config = config.for_items(store.n_items)
        model_config = settled(model_config, store, split, None if start is None else start.model.config)
        self.store, self.split, self.config = store, split, config
        self.device = config.torch_device()
        check_backend(self.device)
        since = None if start is None else known_until(start, store)
        self.slices = TrainingSlices(store, split, model_config.max_length, config.batch_size, since)
        if not self.slices.tokens:
            new = "" if start is None else ", of which the last is later than what the model was trained on"
            raise UserError(f"nothing to train on: no user has two training events{new}")
        if features is not None and config.shard_items:
            raise UserError("option item_features: not used with --shard-items; every process needs the whole table")
        sharded = config.shard_items and distributed.size() > 1
        check_memory(model_config, -(-store.n_items // distributed.size()) if sharded else store.n_items, self.device)
        torch.manual_seed(config.seed)
        self.features = features
        self.model = SequenceModel(model_config, store.n_items, shard_items=sharded, features=features).to(self.device)
        if start is not None:
            take_over(self.model, start, store.item_ids, features)
        self.rows = self._sampled_rows() if config.loss == "sampled" else None
        tables = {"items.weight", "bias"} if self.rows else set()  # their rows have an optimiser of their own
        self._dense = [parameter for name, parameter in self.model.named_parameters() if name not in tables]
        self.optimizer = _optimizer(self._dense, config)
        self._forward = distributed.wrap(self.model, self._dense, shards=sharded)
        self._laid_out = distributed.size() == 1  # whether DDP has laid out the gradients, as it does in a first step
        self.progress, self.timing = Progress(), Timing()
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self._finite = torch.zeros((), dtype=torch.int64, device=self.device)  # steps of the epoch with finite sums
        self._estimated = False  # whether people were told the time of an epoch
        self._began: float | None = None  # since when the time of this epoch is not in ``timing``

    @property
    def finished(self) -> bool:
        """Whether there is a best epoch, and training is over: all epochs are done, or patience is exhausted."""
        progress, config = self.progress, self.config
        return progress.best_epoch > 0 and (progress.epoch >= config.epochs or progress.stale >= config.patience)

    def train(self, saver: Saver | None = None) -> None:
        """Train to the end, or until a signal asks to stop: then :class:`Interrupted` is raised between two steps."""
        with training_display() as display, stop_requests() as check_stop:
            while not self.finished:
                self._steps(display, check_stop, saver)
                self._end_epoch(display, check_stop, saver)

    def train_only(self, epochs: int) -> None:
        """The steps of the next ``epochs`` epochs, without evaluating anything."""
        with training_display() as display, stop_requests() as check_stop:
            for _ in range(epochs):
                self._steps(display, check_stop, None)
                self._next_epoch()

    def step(self, batch: Batch, rate: float) -> Tensor:
        """One optimiser step at learning rate ``rate``; returns the batch's mean loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if not self._laid_out:
            # DDP lays out the gradients anew after its first step, and with three processes or more the order of the
            # sums follows the layout: without this extra pass, a resumed run would go on to different bits.
            self._gradients(batch)
            self._laid_out = True
        loss, read = self._gradients(batch)
        rows = None if read is None else read.added_up()
        if self.config.clip_norm:
            tables = (rows.weight, rows.bias) if rows else ()
            distributed.clip(self._dense, tables, self.config.clip_norm, shards=self.model.shard is not None)
        self.optimizer.step()
        if self.rows and rows:
            self.rows.optimizer.step(rows, rate)
        return distributed.add_up(loss)

    def _gradients(self, batch: Batch) -> tuple[Tensor, SampledStep | None]:
        """This process's share of the mean loss, and the rows of the item table that it was computed from."""
        seed = self.config.seed * 1_000_000_007 + self.progress.step
        torch.manual_seed(seed)  # dropout and negatives of this step
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
            if self.model.mask is not None:
                batch = hide_events(batch)
            read = self.rows.read(batch) if self.rows else None
            batch, share = distributed.part(batch) if read is None else (read.batch, read.share)
            distributed.own_seed(seed)
            table = self.model.table() if read is None else read.table
            with distributed.peers():
                hidden = self._forward(batch, table=table)  # (T, D)
            if batch.masked is not None:
                hidden = hidden[batch.masked]  # (P, D)
            assert batch.targets is not None
            head = self.model.repeats
            repeats = None if head is None else head.of_targets(hidden, batch)
            if read is not None:
                loss = read.loss(hidden, batch.targets, repeats)
            else:
                loss = full_cross_entropy(hidden, table, self.model.bias, batch.targets, repeats)
        self.optimizer.zero_grad(set_to_none=True)
        distributed.backward(loss, share)
        return loss.detach() * share, read

    def validate(self, targets: Any, scorer: Scorer | None = None, *, count_shown: bool = False) -> Ranking:
        """Rank ``targets`` by the model, or by ``scorer`` in its place; ``count_shown`` as in :func:`rank_targets`."""
        self.model.eval()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
            return rank_targets(
                scorer or self.model.folded(),
                self.store,
                targets,
                max_length=self.model.config.max_length,
                exclude_seen=self.config.exclude_seen,
                seen=self.config.seen,
                device=self.device,
                count_shown=count_shown,
                shard=self.model.shard,
            )

    def measure(self) -> None:
        """Bring the sums over the epoch so far into ``progress`` and ``timing``, so that they can be saved."""
        self.progress.epoch_loss = float(self._loss_sum)
        if self._began is not None:
            now = time.perf_counter()
            self.timing.current += now - self._began
            self._began = now

    def refuse_divergence(self, *, weights: bool = True) -> None:
        """Raises :class:`DivergedError` where the loss, or with ``weights`` a weight, is NaN or infinite.

        It is called before every save, so that no checkpoint holds such weights.
        """
        progress, finite = self.progress, int(self._finite)
        if finite < progress.batch:
            raise self._diverged(f"the loss is no number from step {progress.step - progress.batch + finite + 1} on")
        if weights:
            bad = not all(map(_finite, self.model.parameters()))
            # Whole tables are equal in all processes, and each process checks them when it saves, by its own clock.
            if distributed.any_of(bad, self.device) if self.model.shard else bad:
                raise self._diverged(f"weights are no numbers after step {progress.step}")

    def _diverged(self, what: str) -> DivergedError:
        config, progress = self.config, self.progress
        kept = f"the best epoch so far, {progress.best_epoch}, is kept; " if progress.best_epoch else ""
        return DivergedError(
            f"training diverged in epoch {progress.epoch + 1}: {what}; {kept}try a lower --learning-rate "
            f"({config.learning_rate:g}; the default is {TrainingConfig.learning_rate:g}), more --warmup-steps "
            f"({config.warmup_steps}) or --clip-norm 1 ({config.clip_norm:g}; 0 is off)"
            + (", and another --out" if progress.epoch else "")
        )

    def full_loss_seconds(self) -> float:
        """About how many seconds per epoch the full loss takes here, from timing one chunk; 0 where it takes few."""
        scores = self.slices.tokens * self.store.n_items
        if self.config.loss != "full" or scores < TIMED_FROM_SCORES:
            return 0.0
        return self._loss_seconds(self._full_loss)

    def _loss_seconds(self, loss: Callable[[Tensor, Tensor], Tensor]) -> float:
        """About how many seconds per epoch ``loss`` takes, from timing one chunk of tokens."""
        dim = self.model.config.dim
        hidden = torch.zeros(dim, dim, device=self.device, requires_grad=True)  # (C, D)
        targets = torch.zeros(dim, dtype=torch.int64, device=self.device)
        seconds = math.inf
        for _ in range(2):  # the first also pays for fresh memory
            began = time.perf_counter()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
                float(loss(hidden, targets).detach())  # the loss computes its gradients on the way
            seconds = min(seconds, time.perf_counter() - began)
        return seconds * self.slices.tokens / dim

    def _steps(self, display: TrainingDisplay, check_stop: CheckStop, saver: Saver | None) -> None:
        """The rest of the epoch's steps."""
        progress, config = self.progress, self.config
        steps = config.epochs * len(self.slices)
        display.start_epoch(progress.epoch, config.epochs, len(self.slices), progress.batch)
        self.model.train()
        self._loss_sum.fill_(progress.epoch_loss)
        self._finite.fill_(progress.batch)
        self._began = saved = time.perf_counter()
        pace = Pace(len(self.slices))
        for batch in self.slices.epoch(config.seed, progress.epoch, progress.batch):
            rate = config.rate(progress.step, steps)
            self._loss_sum += self.step(batch.to(self.device), rate) * len(batch.items)
            self._finite += self._loss_sum.isfinite()
            progress.step += 1
            progress.batch += 1
            pace.step()
            display.advance(pace.describe())
            if not self._estimated and pace.seconds is not None:
                self._estimated = True
                self._tell_time(display, pace)
            save = saver is not None and time.perf_counter() - saved > 60 * config.checkpoint_minutes
            if self.model.shard:  # all write their parts together, as soon as one of them would save
                save = distributed.any_of(save, self.device)
            if save or progress.step % CHECKED_EVERY == 0:
                self.refuse_divergence(weights=save)
            if saver is not None and save:
                saver.save_last()
                saved = time.perf_counter()
            check_stop(self.device)
        if self.rows:
            self.rows.optimizer.bring_all_up_to_date()
        self.measure()
        self._began = None

    def _end_epoch(self, display: TrainingDisplay, check_stop: CheckStop, saver: Saver | None) -> None:
        progress, config = self.progress, self.config
        self.refuse_divergence()
        mean_loss = progress.epoch_loss / self.slices.tokens
        row: dict[str, Any] = {"epoch": progress.epoch + 1, "step": progress.step, "loss": mean_loss}
        rank = None
        if progress.epoch + 1 >= config.epochs or (progress.epoch + 1) % config.evaluate_every == 0:
            try:
                model = self.model.folded()
                scorer = Interruptible(model, partial(check_stop, self.device) if model.shard else check_stop)
                metrics = self.validate(self.split.validation, scorer).metrics()
            except ScoreError as error:
                raise self._diverged(f"the model's scores are no numbers after step {progress.step}") from error
            row["validation"] = metrics
            rank = [metrics[config.metric], metrics["MRR"], -mean_loss]
        line = _epoch_line(row, config, self.timing.current)
        better = rank is not None and rank > progress.best
        if rank is not None:
            # A lower loss alone makes a better epoch, but no reason to go on: it hardly ever stops falling.
            progress.stale = 0 if rank[:2] > progress.best[:2] else progress.stale + 1
            if better:
                progress.best, progress.best_epoch = rank, progress.epoch + 1
        progress.history.append(row)
        self._next_epoch()
        if saver is not None:
            if better:
                saver.save_best()
            saver.save_last()
        display.line(line)

    def _next_epoch(self) -> None:
        self.progress.epoch += 1
        self.progress.batch, self.progress.epoch_loss = 0, 0.0
        self._loss_sum.zero_()
        self.timing.epochs.append(self.timing.current)
        self.timing.current = 0.0

    def _tell_time(self, display: TrainingDisplay, pace: Pace) -> None:
        """Print a line on how long an epoch takes, if that is long, and how long it would take with the other loss."""
        assert pace.seconds is not None
        if pace.seconds * pace.steps < TOLD_FROM:
            return
        line = pace.describe()
        if self.config.loss == "full":
            saved = self._loss_seconds(self._full_loss) - self._loss_seconds(self._sampled_loss)
            sampled = pace.seconds * pace.steps - saved
            if 0 < sampled < WORTH_SAYING * pace.seconds * pace.steps:
                line += f"; --loss sampled would take {duration(sampled)}"
        display.line(line)

    def _full_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return full_cross_entropy(hidden, self.model.table(), self.model.bias, targets)

    def _sampled_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The sampled softmax with the first items as negatives, to time it."""
        weight, bias = self.model.items.weight[: self.config.negatives], self.model.bias[: self.config.negatives]
        negatives = torch.arange(len(weight), device=self.device)
        return sampled_softmax(hidden, weight, bias, targets, negatives, torch.zeros_like(bias))

    def _sampled_rows(self) -> SampledRows:
        counts = Popularity(self.store, self.split).counts
        config = self.config
        model = self.model
        featured = model.items if isinstance(model.items, FeaturedItems) else None
        tables = model.items.weight, model.bias
        return SampledRows(*tables, counts, config.negatives, config.weight_decay, model.shard, featured)


def _optimizer(parameters: list[torch.nn.Parameter], config: TrainingConfig) -> torch.optim.AdamW:
    decayed = [p for p in parameters if p.ndim >= 2]
    free = [p for p in parameters if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _epoch_line(row: dict[str, Any], config: TrainingConfig, seconds: float) -> str:
    text = f"epoch {row['epoch']:>3}/{config.epochs}  loss {row['loss']:.4f}"
    if "validation" in row:
        text += f"  validation {config.metric} {row['validation'][config.metric]:.4f}"
    return f"{text}  {seconds:.1f} s"
