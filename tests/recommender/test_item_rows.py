"""Training that updates only the rows of the item table that a step reads equals AdamW on all rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from generated import make_store
from test_training import CONFIG, MODEL, SOURCE, same, train, weights
from torch import Tensor, nn

from hyenarec import checkpoint, item_rows
from hyenarec.data.splits import leave_one_out
from hyenarec.errors import DamagedError
from hyenarec.item_rows import RowAdamW, SampledRows
from hyenarec.losses import sampled_softmax
from hyenarec.run_folder import LAST, Run
from hyenarec.stopping import Interrupted
from hyenarec.training import Trainer

WRITES_OF_ROWS = (torch.ops.aten.index_copy_.default, torch.ops.aten.index_put_.default)
SAMPLED: dict[str, Any] = {"loss": "sampled", "negatives": 8, "weight_decay": 0.3}


def tables(n_items: int = 40, dim: int = 3) -> tuple[nn.Parameter, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(n_items, dim, generator=generator, dtype=torch.float64)
    return nn.Parameter(weight), nn.Parameter(torch.zeros(n_items, dtype=torch.float64))


def batch_of_rows(step: int, n_items: int) -> tuple[Tensor, Tensor, Tensor]:
    """The rows that a step reads, and their gradients. Most are in the first half of the table, so that rows go unread
    for none to hundreds of steps."""
    generator = torch.Generator().manual_seed(step)
    places = torch.randperm(n_items if step % 50 == 0 else n_items // 2, generator=generator)[:4].sort().values
    gradient = torch.randn(4, 3, generator=generator, dtype=torch.float64) * 10.0 ** -(step % 5)
    return places, gradient, gradient.sum(1)


@pytest.mark.parametrize("kept", [7, item_rows.MISSED_STEPS], ids=["brought up to date often", "never on its own"])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_rows_are_those_of_adamw(kept: int, decay: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_rows, "MISSED_STEPS", kept)
    weight, bias = tables()
    dense = [nn.Parameter(table.detach().clone()) for table in (weight, bias)]
    rows = RowAdamW(weight, bias, decay)
    groups = [{"params": dense[:1], "weight_decay": decay}, {"params": dense[1:], "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=1.0)
    for step in range(300):
        rate = 1e-2 * min(1.0, (step + 1) / 20)
        places, by_weight, by_bias = batch_of_rows(step, len(weight))
        read = rows.read(places)
        torch.testing.assert_close(read.weight, dense[0][places], rtol=0, atol=1e-5)
        read.weight.grad, read.bias.grad = by_weight, by_bias
        rows.step(read, rate)
        for table, gradient in zip(dense, (by_weight, by_bias), strict=True):
            table.grad = torch.zeros_like(table).index_copy_(0, places, gradient)
        for group in adamw.param_groups:
            group["lr"] = rate
        adamw.step()
    stale = (weight - dense[0]).abs().max()
    rows.bring_all_up_to_date()
    for table, expected in zip((weight, bias), dense, strict=True):
        torch.testing.assert_close(table, expected, rtol=0, atol=1e-5)
        moved = (expected - expected.roll(1)).abs().max()
        assert moved > 0.1
    assert kept == 7 or stale > 1e-2  # unread rows were behind before, so the check can fail
    found = rows.tensors()
    for name, table in (("items.weight", dense[0]), ("bias", dense[1])):
        for key in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(found[f"{name}/{key}"], adamw.state[table][key], rtol=1e-9, atol=1e-15)


def test_a_step_touches_no_whole_table() -> None:
    """With 5,000 items, a sampled step makes no tensor as large as the table or its bias, apart from those whose rows
    it writes in place. A step of the full loss does."""
    store = make_store()
    large = replace(store, item_ids=type(store.item_ids).from_values(range(5_000)))
    largest: dict[str, int] = {}

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            view = any(made.alias_info and not made.alias_info.is_write for made in func._schema.returns)
            if not view and func not in WRITES_OF_ROWS:
                for tensor in out if isinstance(out, tuple | list) else (out,):
                    if isinstance(tensor, Tensor):
                        largest[loss] = max(largest[loss], tensor.numel())
            return out

    for loss in ("sampled", "full"):
        options = SAMPLED if loss == "sampled" else {"loss": loss}
        trainer = Trainer(large, leave_one_out(large), MODEL, replace(CONFIG, **options))
        batch = next(trainer.slices.epoch(0, 0))
        largest[loss] = 0
        trainer.step(batch, 1e-3)
        largest[loss] = 0
        with Watch():
            trainer.step(batch, 1e-3)
    assert largest["sampled"] < 5_000 <= largest["full"]


def test_the_loss_and_gradients_are_those_of_the_whole_table() -> None:
    store = make_store()
    trainer = Trainer(store, leave_one_out(store), MODEL, replace(CONFIG, **SAMPLED))
    assert trainer.rows is not None
    batch = next(trainer.slices.epoch(0, 0))
    read = trainer.rows.read(batch)
    assert read.batch.targets is not None and batch.targets is not None
    assert torch.equal(read.rows.places[read.batch.items], batch.items)
    assert torch.equal(read.rows.places[read.batch.targets], batch.targets)
    trainer.model.eval()
    torch.testing.assert_close(trainer.model(read.batch, table=read.rows.weight), trainer.model(batch))
    hidden = torch.randn(len(batch.items), MODEL.dim)
    weight, bias = trainer.model.items.weight, trainer.model.bias
    log_q = torch.zeros(store.n_items).index_copy(0, read.rows.places, read.log_q)
    negatives = read.rows.places[read.negatives]
    whole = sampled_softmax(hidden, weight, bias, batch.targets, negatives, log_q)
    part = read.loss(hidden, read.batch.targets)
    assert torch.equal(whole, part)
    expected = torch.autograd.grad(whole, (weight, bias))
    for got, want in zip(torch.autograd.grad(part, (read.rows.weight, read.rows.bias)), expected, strict=True):
        torch.testing.assert_close(got, want[read.rows.places])
        assert want.abs().sum() == pytest.approx(float(got.abs().sum()))


def test_negatives_follow_the_counts() -> None:
    counts = torch.tensor([0.0, 9.0, 0.0, 39.0, 0.0])
    rows = SampledRows(*tables(5), counts, negatives=100_000, weight_decay=0.0)
    store = make_store()
    trainer = Trainer(store, leave_one_out(store), MODEL, CONFIG)
    batch = next(trainer.slices.epoch(0, 0))
    small = replace(batch, items=batch.items % 5, targets=batch.items % 5)
    torch.manual_seed(0)
    step = rows.read(small)
    drawn = torch.bincount(step.rows.places[step.negatives], minlength=5) / 100_000
    share = (counts + 1) / 53
    torch.testing.assert_close(drawn, share, rtol=0, atol=5e-3)
    torch.testing.assert_close(step.log_q, share[step.rows.places].log())


def interrupted_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Trainer.step

    def stopping(self: Trainer, *arguments: Any) -> Tensor:
        if self.progress.step == step:
            raise Interrupted(2)
        return whole(self, *arguments)

    monkeypatch.setattr(Trainer, "step", stopping)


@pytest.mark.parametrize("step", [3, 13])
def test_a_stopped_training_goes_on_with_the_same_bits(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops in the middle of an epoch, when some rows are behind, and saves at other times than the whole run."""
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupted_at(step, patch)
        train(tmp_path / "stopped", make_store(), checkpoint_minutes=1e-9, **SAMPLED)
    tensors, header = checkpoint.load(tmp_path / "stopped" / LAST)
    assert header["progress"]["batch"] > 0 and tensors["rows.rows/read"].unique().numel() > 1
    train(tmp_path / "stopped", make_store(), **SAMPLED)
    train(tmp_path / "whole", make_store(), **SAMPLED)
    assert same(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))
    assert same(*(checkpoint.load(tmp_path / name / LAST)[0] for name in ("stopped", "whole")))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("rows.rows/read", lambda read: read + 1000),
        ("rows.rows/steps", lambda steps: 0 * steps),
        ("rows.rows/missed", lambda missed: missed[:, :1].repeat(1, 99)),
        ("rows.bias/exp_avg", lambda moment: moment[:-1]),
        ("rows.items.weight/exp_avg_sq", lambda moment: moment.double()),
        ("rows.rows/read", None),
    ],
)
def test_a_damaged_state_is_one_line(name: str, change: Any, tmp_path: Path) -> None:
    store = make_store()
    train(tmp_path, store, epochs=1, **SAMPLED)
    tensors, header = checkpoint.load(tmp_path / LAST)
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change(tensors[name])
    checkpoint.save(tmp_path / LAST, tensors, header)
    config = replace(CONFIG, epochs=1, **SAMPLED)
    with pytest.raises(DamagedError, match=r"optimizer state '[a-z./_]+' [^\n]+; remove it, and the same command"):
        Run(tmp_path, store, leave_one_out(store), MODEL, config, SOURCE)
