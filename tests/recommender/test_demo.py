"""The demo, on a small log with few epochs: everything that it promises is printed and drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from hyenarec.cli import demo, main
from hyenarec.config import ModelConfig
from hyenarec.data.batches import Batch
from hyenarec.model import SequenceModel


def test_the_demo_shows_spread_baselines_and_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = {"users": 30, "items": 80, "mean_history": 15}
    sizes: dict[str, Any] = {"LOG": log, "LENGTH": 64, "EPOCHS": 1, "TIMED_LENGTHS": (10, 40), "TIMED_EVENTS": 400}
    for name, value in sizes.items():
        monkeypatch.setattr(demo, name, value)
    main(["demo", "--out", str(tmp_path / "demo")])
    text = capsys.readouterr().out
    (ours,) = [line for line in text.splitlines() if "HyenaRec" in line and "±" in line]
    assert ours.count("±") == 4
    assert "item-to-item" in text and "next, by HyenaRec" in text
    assert "training at 40 events of history: HyenaRec" in text
    assert {path.name for path in (tmp_path / "demo").glob("*.png")} == {
        "curve.png", "filters.png", "history.png", "time.png",
    }  # fmt: skip
    assert {path.name for path in (tmp_path / "demo").iterdir() if path.is_dir()} == {
        "hyena-0", "hyena-1", "attention-0", "attention-1",
    }  # fmt: skip


def test_a_timed_step_is_of_as_many_events_at_every_length(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, int]] = []

    class Model(SequenceModel):
        def forward(self, batch: Batch, *, last_only: bool = False, table: Tensor | None = None) -> Tensor:
            read.append((len(batch.items), batch.packing.sequences))
            return super().forward(batch, last_only=last_only, table=table)

    monkeypatch.setattr("hyenarec.model.SequenceModel", Model)
    monkeypatch.setattr(demo, "TIMED_EVENTS", 400)
    for length in (10, 200):
        assert demo.seconds_per_event(ModelConfig(max_length=length, dim=8)) > 0
    assert read == 3 * [(400, 40)] + 3 * [(400, 2)]
