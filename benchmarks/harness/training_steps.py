"""Times whole training steps; shared by the suites on training.

A step is what training does: a batch from the loader, the model forward and backward, clipping, AdamW; nothing is
evaluated or saved. Contestants take turns, each in its own process. Peak memory is measured in another process: on a
CPU its whole resident set, interpreter and libraries included; on a GPU what tensors took. That process also checks the
contestant's outputs and gradients on its own batch. A contestant whose step takes longer than the limit is left out.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, Literal, TypeVar

import torch

from benchmarks.harness.checks import first_sequences, training_check
from benchmarks.harness.measuring import fresh_process, in_fresh_process, take_turns, wall_clock
from benchmarks.harness.registry import BLOCKS, DIM, SYSTEMS
from hyenarec.allocator import keep_freed_memory
from hyenarec.config import TrainingConfig
from hyenarec.data.batches import Batch
from hyenarec.data.splits import leave_one_out
from hyenarec.data.store import SequenceStore
from hyenarec.training import Trainer

WARM_UP = 6  # steps; the first take up to twice as long, until the process keeps as much memory as they need

Build = Callable[[], Trainer]  # called in a fresh process, so it has to be picklable
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class StepSettings:
    """What all measurements of a result share."""

    dim: int = DIM
    """Channels."""
    blocks: int = BLOCKS
    """Blocks of the model."""
    loss: Literal["full", "sampled"] = "sampled"
    """Cross entropy over the full catalogue, whose cost can hide the mixer's, or sampled softmax."""
    negatives: int = 128
    """Negatives of the sampled softmax. Training's default of 1,024 would take over half of hyena's step."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of matrix products, the same for every mixer; bfloat16 by autocast."""
    compile: bool = False
    """Compile every model alike (torch.compile)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train: auto takes a GPU where there is one."""
    limit: float = 20.0
    """Seconds a step may take."""
    seconds: float = 15.0
    """Seconds of turns for each length."""
    rounds: int = 5
    """Fewest turns of each contestant, however long they take."""

    def training(self, batch_size: int = 1) -> TrainingConfig:
        return TrainingConfig(
            batch_size=batch_size,
            loss=self.loss,
            negatives=self.negatives,
            bf16=self.precision == "bfloat16",
            device=self.device,
        )

    def name(self, suite: str) -> str:
        """The result's name, without a suffix."""
        device = self.training().torch_device().type
        return "-".join([suite, device] + [self.precision] * (self.precision != "float32"))

    def trainer(self, system: str, length: int, batch_size: int, store: SequenceStore) -> Trainer:
        """A trainer of the system on the store's training slices of ``length`` events, ready for steps."""
        model = SYSTEMS[system].model(length, self.dim, self.blocks)
        trainer = Trainer(store, leave_one_out(store), model, self.training(batch_size))
        trainer.model.train()
        if self.compile:
            trainer.model.compile()
        return trainer


def measure(builds: Mapping[Name, Build], settings: StepSettings) -> dict[Name, dict[str, Any]]:
    """For each contestant the fields of its case: memory, check and times, or why it is left out."""
    found: dict[Name, dict[str, Any]] = {}
    for name, build in builds.items():
        trial = in_fresh_process(try_steps, build, settings)
        if trial.pop("seconds") <= settings.limit:
            found[name] = trial
        else:
            found[name] = {"left_out": f"a step takes over {settings.limit:g} s"}
    running = {name: build for name, build in builds.items() if "left_out" not in found[name]}
    for name, milliseconds in time_steps(running, settings).items():
        found[name]["ms"] = milliseconds
    return found


def try_steps(build: Build, settings: StepSettings) -> dict[str, Any]:
    """Runs two steps in this process. Returns the seconds of the second; where it keeps the limit, also memory in MiB
    and the check. If the first step exceeds the limit and compiled nothing, only its seconds are returned."""
    trainer = build()
    step, idle = training_step(trainer), peak_mib()
    for first in (True, False):
        began = time.perf_counter()
        step()
        seconds = time.perf_counter() - began
        if seconds > settings.limit and not (first and settings.compile):
            return {"seconds": seconds}
    peak = peak_mib()
    batch = first_sequences(next(endless(trainer))).to(trainer.device)
    check = training_check(trainer.model, batch, settings.precision)
    return {"seconds": seconds, "peak_mib": peak, "idle_mib": idle, "check": check}


def time_steps(builds: Mapping[Name, Build], settings: StepSettings) -> dict[Name, dict[str, float]]:
    """Milliseconds of the contestants' steps, in turns. Each contestant has a process of its own, as in training, so
    that none pays for a heap that the others have fragmented."""
    with ExitStack() as stack:
        turns: dict[Name, Callable[[], float]] = {}
        for number, (name, build) in enumerate(builds.items()):
            process = stack.enter_context(fresh_process())
            process.submit(prepare_steps, build, number).result()
            turns[name] = partial(take_turn, process, number)
        return take_turns(turns, settings.seconds, settings.rounds, clock=lambda turn: turn())


def take_turn(process: Executor, number: int) -> float:
    """Milliseconds of the next step of the contestant ``number``, which ``process`` has prepared."""
    return process.submit(timed_step, number).result()


_steps: dict[int, Callable[[], None]] = {}  # of this process, by the contestant's number


def prepare_steps(build: Build, number: int) -> None:
    """Builds a contestant in this process and warms it up. The process keeps freed memory, as ``hyenarec`` does."""
    keep_freed_memory()
    _steps[number] = training_step(build())
    for _ in range(WARM_UP):
        _steps[number]()


def timed_step(number: int) -> float:
    return wall_clock(_steps[number])


def training_step(trainer: Trainer) -> Callable[[], None]:
    """A function that does the trainer's next step, and returns when the device has finished it."""
    return partial(_step, trainer, endless(trainer))


def _step(trainer: Trainer, batches: Iterator[Batch]) -> None:
    trainer.step(next(batches).to(trainer.device), trainer.config.learning_rate)
    trainer.progress.step += 1
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()


def endless(trainer: Trainer) -> Iterator[Batch]:
    for epoch in count():
        yield from trainer.slices.epoch(trainer.config.seed, epoch)


def peak_mib() -> float:
    """The most memory this process has held so far: tensors on the GPU where it uses one, else its resident set."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # Linux counts KiB
