"""The suite on training steps: the loader's batches, padded and packed, and what its result says about them."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch

from benchmarks.harness.recording import read
from benchmarks.suites import step
from hyenarec.cli.options import Columns
from hyenarec.data.batches import Batch
from hyenarec.data.reading import open_data
from hyenarec.data.splits import leave_one_out
from hyenarec.errors import UserError
from hyenarec.packing import Packing

TINY = step.LogStepSettings(batch_size=4, dim=8, blocks=1, negatives=4, device="cpu", seconds=0, rounds=2)
LENGTHS = (3, 9, 4, 12, 5, 30)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    rows = [f"{user},{(user * event) % 7},{event}" for user, n in enumerate(LENGTHS) for event in range(n)]
    path = tmp_path / "events.csv"
    path.write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    return path


@pytest.mark.usefixtures("in_this_process")
def test_result(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "step"
    step.Step(log, mixers=("hyena", "bert4rec"), lengths=(8,), out=out, settings=TINY).run()
    step.Step(log, mixers=("hyena",), lengths=(4,), out=out, settings=TINY).run()  # is added to the same result
    result = read(out.with_suffix(".json"))
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    cases = {(case["length"], case["mixer"], case["layout"]): case for case in result["cases"]}
    layouts = ("packed", "padded")
    assert list(cases) == [*product([4], ["hyena"], layouts), *product([8], ["hyena", "bert4rec"], layouts)]
    slices = step.PaddedSlices(open_data(log), leave_one_out(open_data(log)), 8, 4)
    rows = sum(len(batch.items) for batch in slices.epoch(0, 0))
    for case in cases.values():
        assert case["log"] == "events"
        assert case["check"]["error"] <= case["check"]["tolerance"]
        assert case["tokens_per_second"] == pytest.approx(1e3 * case["tokens"] / case["ms"]["median"])
        assert (case["padding"] > 0) == (case["layout"] == "padded")
    assert cases[8, "hyena", "packed"]["tokens"] == slices.tokens / len(slices)
    assert cases[8, "hyena", "padded"]["padding"] == pytest.approx(1 - slices.tokens / rows)
    seconds = cases[8, "hyena", "packed"]["seconds_per_epoch"]
    assert seconds == pytest.approx(cases[8, "hyena", "packed"]["ms"]["median"] * len(slices) / 1e3)


def test_padded_batch_holds_the_packed_one_and_zeros() -> None:
    packing = Packing.from_lengths(torch.tensor([2, 4, 1]))
    events = torch.arange(1, 8)
    full = step.padded(Batch(events, packing, timestamps=10 * events, targets=events + 1))
    assert full.packing.lengths.tolist() == [4, 4, 4] and full.packing.max_length == 4
    assert full.items.view(3, 4).tolist() == [[1, 2, 0, 0], [3, 4, 5, 6], [7, 0, 0, 0]]
    assert full.timestamps is not None and full.targets is not None
    assert full.timestamps.view(3, 4)[0].tolist() == [10, 20, 0, 0]
    assert full.targets.view(3, 4)[2].tolist() == [8, 0, 0, 0]


def test_generated_log_where_none_is_named() -> None:
    store = step.open_log(None, Columns())
    assert store.n_users == 1000 and store.n_events > 50_000


def test_bad_options() -> None:
    with pytest.raises(UserError, match="mixers: name at least one out of hyena, "):
        step.Step(mixers=("sasrec",)).run()
    with pytest.raises(UserError, match="lengths"):
        step.Step(lengths=()).run()
