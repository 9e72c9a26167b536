"""A model whose steps run as compiled programs: which inputs these programs get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hyenarec import compiled
from hyenarec.config import ModelConfig
from hyenarec.data.batches import Batch
from hyenarec.model import SequenceModel
from hyenarec.packing import Packing


def transposed(values: Tensor) -> Tensor:
    """A copy whose last dimension is not contiguous."""
    return values.clone().transpose(0, -1).contiguous().transpose(0, -1)


@pytest.mark.parametrize("mixer", ["hyena", "gru"])
def test_a_package_gets_contiguous_states(mixer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package assumes that its inputs are contiguous, and would otherwise read wrong numbers. States with any strides
    are therefore copied."""
    made: dict[Path, Any] = {}

    def load(path: Path) -> Any:
        program = made[path]

        def run(*inputs: Tensor) -> Any:
            assert all(values.is_contiguous() for values in inputs)
            return program(*inputs)

        return run

    monkeypatch.setattr(compiled, "export", lambda program: program)
    monkeypatch.setattr(compiled, "package", lambda program, path: made.__setitem__(path, program))
    monkeypatch.setattr(compiled.Package, "load", load)
    torch.manual_seed(0)
    model = SequenceModel(ModelConfig(mixer=mixer, dim=8, max_length=30), 20).eval()
    run = compiled.CompiledModel(model, compact=False)
    with torch.no_grad():
        batch = Batch(torch.randint(20, (12,)), Packing.from_lengths(torch.tensor([5, 4, 3])), None)
        _, want = model.prefill(batch)
        tensors = {name: transposed(values) for name, values in want.tensors().items()}
        assert not all(values.is_contiguous() for values in tensors.values())
        state = want.with_tensors(tensors)
        for _ in range(3):
            items = torch.randint(20, (6,))[::2]
            expected, want = model.step(items, want)
            hidden, state = run.step(items, state, None)
            torch.testing.assert_close(hidden, expected)
    for name, values in want.tensors().items():
        torch.testing.assert_close(state.tensors()[name], values, msg=name)
