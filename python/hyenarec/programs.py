"""A model's two uses as programs on tensors alone, which can be exported and compiled.

A :class:`HistoryProgram` reads whole histories, a :class:`StepProgram` one event of every user. Both compute in
float32, whatever the model was trained in, and return the best items or hidden states.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from hyenarec.data.batches import Batch
from hyenarec.errors import UserError
from hyenarec.mixers import MIXERS
from hyenarec.model import Block, SequenceModel
from hyenarec.packing import Rectangle
from hyenarec.repeats import Recent
from hyenarec_kernels.native import called_directly, use_native
from hyenarec_kernels.nn import HyenaMixer

# Weights are not known while a program is compiled, so what is computed from them alone is computed when it is loaded.
COMPILER = {"aot_inductor.use_runtime_constant_folding": True}


def inference_copy(model: SequenceModel) -> SequenceModel:
    """A copy on the CPU in float32, for programs."""
    if not MIXERS[model.config.mixer].causal:
        raise UserError(
            f"mixer {model.config.mixer}: only causal mixers are exported; it reads every history with a masked event"
        )
    made = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    for module in made.modules():
        if isinstance(module, HyenaMixer | Block):  # else every call would add the identity to the stored matrices
            module.freeze()
    return made


class HistoryProgram(nn.Module):
    """Turns ``items`` (B, L) int64, L at least 2, right-padded with any item, ``lengths`` (B,) int64, at least 1, and,
    for a model that knows time, ``timestamps`` (B, L) int64 in seconds, into scores (B, top) float32 and items (B, top)
    int64, best first; or with ``top`` 0 into hidden states (B, D)."""

    def __init__(self, model: SequenceModel, top: int) -> None:
        super().__init__()
        self.model, self.top = model, top

    def forward(self, items: Tensor, lengths: Tensor, timestamps: Tensor | None = None) -> tuple[Tensor, ...]:
        _same_users(items, lengths)
        packing = Rectangle.of(lengths, items.shape[1])
        batch = Batch(items.flatten(), packing, None if timestamps is None else timestamps.flatten())
        return _best(self.model, self.model(batch, last_only=True), self.model.recent(batch), self.top)


class StepProgram(nn.Module):
    """Turns ``items`` (B,) int64, for a model that knows time ``timestamps`` (B,) int64 in seconds, and the tensors of
    a state of B users, in the order of ``names``, into what :class:`HistoryProgram` returns. The state's tensors are
    updated in place: views of neighbouring users in a pool may be given, without a copy."""

    def __init__(self, model: SequenceModel, top: int, *, compact: bool) -> None:
        super().__init__()
        self.model, self.top, self.compact = model, top, compact
        self.knows_time = MIXERS[model.config.mixer].knows_time
        self.template = model.init_state(1, compact=compact)
        self.names = list(self.template.tensors())

    def forward(self, items: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        _same_users(items, *rest)
        timestamps, given = (rest[0], rest[1:]) if self.knows_time else (None, rest)
        before = self.template.with_tensors(dict(zip(self.names, given, strict=True)))
        hidden, after = self.model.step(items, before, timestamps)
        new = after.tensors()
        for name, values in zip(self.names, given, strict=True):
            if new[name] is not values:
                values.copy_(new[name])
        return _best(self.model, hidden, after.recent(), self.top)


def _same_users(items: Tensor, *others: Tensor) -> None:
    """Tells torch.export that all have the same number of rows; else it takes each tensor's for an independent size."""
    for values in others:
        torch._check(values.shape[0] == items.shape[0])  # type: ignore[no-untyped-call]


def _best(model: SequenceModel, hidden: Tensor, recent: Recent | None, top: int) -> tuple[Tensor, ...]:
    if not top:
        return (hidden,)
    best = model.scores_of(hidden, recent).topk(top)
    return best.values, best.indices


def export(program: HistoryProgram | StepProgram, *, batch: int | None = None) -> ExportedProgram:
    """``program`` for any number of users, or for ``batch``, and for any number of events up to the model's
    ``max_length``. Raises :class:`UserError` where torch cannot export it."""
    model, users = program.model, 3 if batch is None else batch
    knows_time = MIXERS[model.config.mixer].knows_time
    some = Dim("users", min=1, max=1 << 20) if batch is None else None
    shapes: dict[str, Any]
    inputs: tuple[Tensor, ...]
    if isinstance(program, StepProgram):
        state = list(model.init_state(users, compact=program.compact).tensors().values())
        times = [torch.zeros(users, dtype=torch.int64)] if knows_time else []
        inputs = (torch.zeros(users, dtype=torch.int64), *times, *state)
        shapes = {"items": {0: some}, "rest": tuple({0: some} for _ in inputs[1:])}
    else:
        most = model.config.max_length
        length = min(5, most)
        both = {0: some, 1: Dim("events", min=2, max=most) if most > 5 else None}
        inputs = (torch.zeros(users, length, dtype=torch.int64), torch.full((users,), length))
        shapes = {"items": both, "lengths": {0: some}}
        if knows_time:
            inputs, shapes = (*inputs, inputs[0].clone()), shapes | {"timestamps": both}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's warnings about its own internals
            exported = torch.export.export(program, inputs, dynamic_shapes=shapes, strict=False)
            if batch is None and isinstance(program, HistoryProgram):
                # Where a loop was unrolled for the example's sizes, torch only notes it, and a package would not check.
                lengths = torch.ones(2, dtype=torch.int64)
                for events in (2, min(9, most)):
                    items = torch.zeros(2, events, dtype=torch.int64)
                    exported.module()(items, lengths, *([items] if knows_time else []))
            return exported
    except Exception as error:
        reason = next(line for line in str(error).splitlines() if line.strip())
        kind = "step" if isinstance(program, StepProgram) else "forward"
        raise UserError(f"mixer {model.config.mixer}: torch.export cannot read its {kind}: {reason}") from error


def package(program: ExportedProgram, path: Path) -> None:
    """Compile ``program``, with the compiled library's operators, into an AOTInductor package at ``path``."""
    try:
        use_native(program)
    except NotImplementedError as error:
        raise UserError(f"a package needs the compiled library: {error}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's warnings about its own internals
            settings = COMPILER | called_directly()
            torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)
    except Exception as error:
        if not isinstance(error, FileNotFoundError | RuntimeError) and "compiler" not in str(error).lower():
            raise
        reason = next(line for line in str(error).splitlines() if line.strip())
        raise UserError(f"torch cannot compile a package here, which takes a C++ compiler: {reason}") from error


@dataclass(frozen=True)
class Package:
    """A loaded package; a call skips torch's own checks and its trees of arguments, which take half of a step's
    time."""

    loader: Any

    @classmethod
    def load(cls, path: Path) -> Package:
        return cls(torch._inductor.aoti_load_package(str(path)).loader)

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        outputs: list[Tensor] = self.loader.run(list(inputs))
        return outputs
