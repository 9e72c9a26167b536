"""A CUDA graph can capture a recommender's whole training step, the reading of histories, and a serving step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hyenarec.config import ModelConfig
from hyenarec.data.batches import Batch
from hyenarec.losses import full_cross_entropy, sampled_softmax
from hyenarec.model import SequenceModel
from hyenarec.packing import Packing
from tests.capture import Recorder, keep_bases

ITEMS, EVENTS, USERS = 30, 60, 3


def setting(**options: Any) -> tuple[SequenceModel, Batch]:
    with torch.device("meta"):
        model = SequenceModel(ModelConfig(dim=16, max_length=40, **options), ITEMS)
        items, targets = torch.empty(2, EVENTS, dtype=torch.int64)
        return model, Batch(items, Packing(torch.empty(USERS + 1, dtype=torch.int64), 40), targets=targets)


@pytest.mark.parametrize("embedding", ["shared", "decoupled"])
@pytest.mark.parametrize("loss", ["full", "sampled"])
def test_training_step(loss: str, embedding: str) -> None:
    model, batch = setting(embedding=embedding)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with torch.device("meta"):
        negatives, log_q = torch.empty(20, dtype=torch.int64), torch.empty(ITEMS)
    with Recorder() as recorder:
        optimizer.zero_grad()
        hidden, table = model(batch), (model.items.weight, model.bias)
        assert batch.targets is not None
        if loss == "full":
            full_cross_entropy(hidden, *table, batch.targets).backward()
        else:
            sampled_softmax(hidden, *table, batch.targets, negatives, log_q).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert recorder.names.count("hyenarec.legendre_conv_backward.default") == 2  # one per block


def test_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_bases(monkeypatch)
    model, batch = setting()
    model.eval()
    with torch.device("meta"):
        new = torch.empty(USERS, dtype=torch.int64)
    with Recorder() as recorder, torch.no_grad():
        last = model.hidden_after(batch)
        read, state = model.prefill(batch)
        hidden, state = model.step(new, state)
        best = torch.addmm(model.bias, hidden, model.items.weight.T).topk(5).indices
    assert last.shape == read.shape == (USERS, 16) and best.shape == (USERS, 5)
    assert recorder.names.count("hyenarec.conv_step.default") == 2 * 2  # short and long, in two blocks


def test_what_waits_for_the_device_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SequenceModel, "_positions", lambda self, packing: packing.positions)
    for test in (lambda: test_serving(monkeypatch), lambda: test_training_step("full", "shared")):
        with pytest.raises((RuntimeError, NotImplementedError), match=r"meta|repeat_interleave"):
            test()
