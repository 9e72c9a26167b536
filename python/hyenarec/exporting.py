"""Exports a trained model to files that other programs run: programs of torch.export, packages of AOTInductor, ONNX.

Each file is read back and compared with the model, on random histories, before :func:`export_model` returns.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from hyenarec.errors import UserError
from hyenarec.int8 import round_weights
from hyenarec.mixers import MIXERS
from hyenarec.model import SequenceModel
from hyenarec.programs import HistoryProgram, Package, StepProgram, export, inference_copy, package
from hyenarec.repeats import Recent
from hyenarec.standard import use_standard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hyenarec.recommendation import Recommender

Format = Literal["program", "package", "onnx"]
FORMATS: tuple[Format, ...] = ("program", "package", "onnx")
# How far a file's scores may be from the model's, as a share of the largest: sums are taken in another order.
TOLERANCE = 1e-4
CHECKED = ((1, 2), (3, 17), (2, 1 << 30))  # numbers of users, and of events before they are cut to max_length


@dataclass(frozen=True)
class Exported:
    """The files written, and one line for each program that cannot be made of this mixer."""

    files: list[Written]
    left_out: list[str]


@dataclass(frozen=True)
class Written:
    """A file, its size in bytes, and by how much its scores differ from the model's, as a share of the largest."""

    path: Path
    size: int
    difference: float


def export_model(
    recommender: Recommender,
    folder: Path,
    *,
    formats: Sequence[Format] = FORMATS,
    top: int = 10,
    compact: bool = True,
    int8: bool = False,
) -> Exported:
    """Writes ``formats`` into ``folder``, which is created if it is missing.

    Args:
        recommender: its model is exported, in float32.
        top: items that each program returns.
        compact: whether a step's states are compact (:class:`hyenarec_kernels.nn.CompactState`) where the mixer has
            such states.
        int8: rounds matrices to 8 bits, with one factor per row: files of about a quarter of the size.

    Raises:
        UserError: no program of the model's mixer can be exported, or something that a format needs is missing.
    """
    if not 1 <= top <= len(recommender.item_ids):
        raise UserError(f"option k: {top} is not between 1 and the {len(recommender.item_ids)} items")
    if "onnx" in formats and (
        missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    ):
        raise UserError(f"ONNX needs {' and '.join(missing)}: pip install 'hyenarec[export]'")
    model = inference_copy(recommender.model)
    if int8:
        round_weights(model)
    history, step = HistoryProgram(model, top), StepProgram(model, top, compact=compact)
    folder.mkdir(parents=True, exist_ok=True)
    _describe(recommender, history, step, folder)
    files: list[Written] = []
    left_out: list[str] = []
    for name, program in (("history", history), ("step", step)):
        if not {"program", "package"} & set(formats):
            break
        check = _check_history if program is history else _check_step
        try:
            exported = export(program)
        except UserError as error:
            left_out.append(str(error))
            continue
        if "program" in formats:
            path = folder / f"{name}.pt2"
            torch.export.save(exported, path)
            files.append(_written(path, check(model, torch.export.load(path).module(), compact)))
        if "package" in formats:
            path = folder / f"{name}-package.pt2"
            package(exported, path)
            files.append(_written(path, check(model, Package.load(path), compact)))
    if "onnx" in formats:
        path = folder / "history.onnx"
        try:
            write_onnx(model, path, top)
            files.append(_written(path, _check_history(model, run_onnx(path), compact)))
        except UserError as error:
            left_out.append(str(error))
    if not files:
        raise UserError(left_out[0])
    for file in files:
        if not file.difference <= TOLERANCE:
            raise UserError(f"{file.path}: its scores differ from the model's by {file.difference:.1e} of the largest")
    return Exported(files, list(dict.fromkeys(left_out)))


def write_onnx(model: SequenceModel, path: Path, top: int) -> None:
    """Writes a :class:`HistoryProgram` of standard operators, for any number of users and up to ``max_length``
    events."""
    exported = export(HistoryProgram(use_standard(inference_copy(model), model.config.max_length), top))
    names = ["items", "lengths", *(["timestamps"] if MIXERS[model.config.mixer].knows_time else [])]
    try:
        with _quiet():
            torch.onnx.export(
                exported,
                f=path,
                input_names=names,
                output_names=["scores", "best"],
                external_data=False,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        first: BaseException = error  # it says what could not be written; the last one says how to report it
        while first.__cause__ is not None:
            first = first.__cause__
        reason = next(line for line in str(first).splitlines() if line.strip())
        raise UserError(f"mixer {model.config.mixer}: torch.onnx.export cannot write it: {reason}") from error


def run_onnx(path: Path) -> Callable[..., list[Tensor]]:
    onnxruntime = import_module("onnxruntime")

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(*inputs: Tensor) -> list[Tensor]:
        given = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return [torch.from_numpy(np.asarray(found)) for found in session.run(None, given)]

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside the context, torch's exporters print no notes about their own internals."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _written(path: Path, difference: float) -> Written:
    return Written(path, path.stat().st_size, difference)


@torch.inference_mode()
def _check_history(model: SequenceModel, run: Callable[..., Sequence[Tensor]], compact: bool) -> float:
    want, worst = HistoryProgram(model, 0), 0.0
    for users, events in CHECKED:
        items, lengths, *times = _histories(model, users, events)
        (hidden,) = want(items, lengths, *times)
        recent = None if model.repeats is None else Recent.padded(items, lengths)
        worst = max(worst, _difference(model.scores_of(hidden, recent), *run(items, lengths, *times)))
    return worst


@torch.inference_mode(False)
@torch.no_grad()
def _check_step(model: SequenceModel, run: Callable[..., Sequence[Tensor]], compact: bool) -> float:
    worst = 0.0
    for users, events in CHECKED[:2]:
        items, _, *times = _histories(model, users, events)
        state, other = (model.init_state(users, compact=compact) for _ in range(2))
        for event in range(items.shape[1]):
            now = [t[:, event].contiguous() for t in times]
            hidden, state = model.step(items[:, event], state, *now)
            found = run(items[:, event].contiguous(), *now, *other.tensors().values())
            worst = max(worst, _difference(model.scores_of(hidden, state.recent()), *found))
    return worst


def _histories(model: SequenceModel, users: int, events: int) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(0)
    events = min(events, model.config.max_length)
    items = torch.randint(model.items.weight.shape[0], (users, events), generator=random)
    lengths = torch.randint(1, events + 1, (users,), generator=random)
    lengths[0] = events
    if not MIXERS[model.config.mixer].knows_time:
        return items, lengths
    return items, lengths, torch.randint(10**6, items.shape, generator=random).cumsum(1)


def _difference(own: Tensor, scores: Tensor, best: Tensor) -> float:
    """Of the best scores from the best of the model's ``own``, and from its scores of the same items: the larger
    difference, as a share of the largest score."""
    largest = own.abs().max().clamp(min=1e-9)
    off = (scores - own.topk(scores.shape[1]).values).abs().max(), (scores - own.gather(1, best)).abs().max()
    return float(torch.stack(off).max() / largest)


def _describe(recommender: Recommender, history: HistoryProgram, step: StepProgram, folder: Path) -> None:
    """Writes what a program in another language has to know: item ids by index, and the tensors of a user's state."""
    state = step.model.init_state(1, compact=step.compact).tensors()
    knows_time = {"timestamps": "int64"} if step.knows_time else {}
    described = {
        "history": {"inputs": ["items", "lengths", *knows_time], "outputs": ["scores", "best"]},
        "step": {
            "inputs": ["items", *knows_time, *step.names],
            "outputs": ["scores", "best"],
            "state": {
                name: {"shape": list(values.shape[1:]), "dtype": str(values.dtype).removeprefix("torch.")}
                for name, values in state.items()
            },
        },
        "max_length": step.model.config.max_length,
        "items": recommender.item_ids.decode(np.arange(len(recommender.item_ids))),
    }
    (folder / "export.json").write_text(json.dumps(described), encoding="utf-8")
