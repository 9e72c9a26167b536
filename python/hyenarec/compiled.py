"""A model whose steps and forwards run as compiled programs, where it has such programs."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

from torch import Tensor
from torch.nn.functional import pad

from hyenarec.data.batches import Batch
from hyenarec.errors import UserError
from hyenarec.mixers import MIXERS
from hyenarec.model import SequenceModel
from hyenarec.model_state import ModelState
from hyenarec.programs import HistoryProgram, Package, StepProgram, export, inference_copy, package


class CompiledModel:
    """What :meth:`SequenceModel.step` and its forward compute, by packages of AOTInductor: no Python between operators.

    States are those of the model itself, compact where ``compact`` says so, on the CPU in float32.
    """

    def __init__(self, model: SequenceModel, *, compact: bool) -> None:
        self._model, plain = model, inference_copy(model)
        self._knows_time = MIXERS[model.config.mixer].knows_time
        step = StepProgram(plain, 0, compact=compact)
        self._names = step.names
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "package.pt2"
            package(export(step), path)
            self._step = Package.load(path)
            self._forward: Package | None = None
            with suppress(UserError):  # not for a GRU, which torch unrolls over the events of its example
                package(export(HistoryProgram(plain, 0)), path)
                self._forward = Package.load(path)

    def takes_step(self, state: ModelState, timestamps: Tensor | None) -> bool:
        """Whether :meth:`step` can take this. A model that knows time counts events where it gets no times: that would
        be another program, which was not compiled."""
        return list(state.tensors()) == self._names and (timestamps is not None or not self._knows_time)

    def step(self, items: Tensor, state: ModelState, timestamps: Tensor | None) -> tuple[Tensor, ModelState]:
        """As :meth:`SequenceModel.step`; the state given may be written to."""
        self._model.check_room(state)
        times = [timestamps] if self._knows_time and timestamps is not None else []
        tensors = state.tensors()
        if not all(values.is_contiguous() for values in tensors.values()):  # a package assumes it
            tensors = {name: values.contiguous() for name, values in tensors.items()}
            state = state.with_tensors(tensors)
        (hidden,) = self._step(*(given.contiguous() for given in (items, *times)), *tensors.values())
        return hidden, state

    def takes_batch(self, batch: Batch) -> bool:
        """Whether :meth:`hidden` can take this; what was said of times holds here too."""
        return self._forward is not None and (batch.timestamps is not None or not self._knows_time)

    def hidden(self, batch: Batch) -> Tensor:
        """The hidden states after whole histories, (S, D)."""
        packing = batch.packing
        assert self._forward is not None
        times = [batch.timestamps] if self._knows_time and batch.timestamps is not None else []
        wide = [pad(packing.pad(values), (0, max(2 - packing.max_length, 0))) for values in (batch.items, *times)]
        (hidden,) = self._forward(wide[0], packing.lengths, *wide[1:])
        return hidden
