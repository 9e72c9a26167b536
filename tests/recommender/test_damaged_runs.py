"""Checkpoints of a run that are damaged, foreign or hostile: a one-line error says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from generated import make_store
from test_training import train

from hyenarec import checkpoint
from hyenarec import trained as trained_module
from hyenarec.errors import UserError
from hyenarec.recommendation import Recommender
from hyenarec.run_folder import LAST
from hyenarec.trained import BEST, load_trained


def test_the_best_of_another_run_is_refused(tmp_path: Path) -> None:
    for seed in (0, 1):
        train(tmp_path / str(seed), make_store(), seed=seed)
    foreign = (tmp_path / "1" / BEST).read_bytes()
    (tmp_path / "0" / BEST).write_bytes(foreign)
    with pytest.raises(UserError, match=r"best\.safetensors belongs to another run \(training.seed: 1 there, 0 here\)"):
        train(tmp_path / "0", make_store())
    (tmp_path / "0" / LAST).unlink()
    with pytest.raises(UserError, match="belongs to another run"):
        train(tmp_path / "0", make_store())
    assert (tmp_path / "0" / BEST).read_bytes() == foreign


def test_the_best_of_another_epoch_is_refused(tmp_path: Path) -> None:
    """Its options are right, but it is not of the epoch that the run's own progress calls the best."""
    result = train(tmp_path, make_store(), epochs=2)
    tensors, header = checkpoint.load(tmp_path / BEST)
    checkpoint.save(tmp_path / BEST, tensors, header | {"epoch": result["best_epoch"] + 1})
    with pytest.raises(UserError, match=rf"is of epoch {result['best_epoch'] + 1}, but the best of this run is epoch"):
        train(tmp_path, make_store(), epochs=2)


def test_a_damaged_best_says_what_to_do(tmp_path: Path) -> None:
    first = train(tmp_path, make_store(), epochs=2)
    (tmp_path / BEST).write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"best\.safetensors: truncated or damaged .*; remove it, and the same command"):
        train(tmp_path, make_store(), epochs=2)
    (tmp_path / BEST).unlink()
    assert train(tmp_path, make_store(), epochs=2)["test"] == first["test"]


@pytest.mark.parametrize("name", [LAST, BEST])
def test_a_flipped_bit_of_the_weights_is_found(name: str, tmp_path: Path) -> None:
    train(tmp_path, make_store(), epochs=1)
    content = bytearray((tmp_path / name).read_bytes())
    content[-5] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: damaged checkpoint: its contents do not match its checksum"):
        train(tmp_path, make_store(), epochs=1)


def test_weights_that_are_no_numbers_are_no_result(tmp_path: Path) -> None:
    train(tmp_path, make_store(), epochs=1)
    tensors, header = checkpoint.load(tmp_path / BEST)
    tensors["model.bias"][3] = torch.nan
    checkpoint.save(tmp_path / BEST, tensors, header)
    with pytest.raises(UserError, match=r"best\.safetensors: bias holds NaN or infinity"):
        load_trained(tmp_path)


def hostile(header: dict[str, Any], options: dict[str, Any], part: str = "model") -> dict[str, Any]:
    config = dict(header["config"])
    config[part] = config[part] | options
    return header | {"config": config}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"dim": 60_000},
            r"items.weight should be \(30, 60000\) by the checkpoint's own options and ids, but is \(30, 8",
        ),
        ({"blocks": 1000}, "1000 blocks by the checkpoint's own options, but it has 1"),
        ({"max_length": 10**9}, "option max_length: 1000000000 is above 1048576"),
        ({"mixer": "attention"}, "tensor '.*' (is missing|does not belong to such a model)"),
        ({"mixer": "lstm"}, "option mixer: 'lstm' is none of hyena"),
        ({"dim": "eight"}, "model: option dim cannot be 'eight'"),
        ({"dim": True}, "model: option dim cannot be True"),
        ({"dropout": None}, "model: option dropout cannot be None"),
        ({"width": 3}, "model: unknown option 'width'"),
        ({"hyena": 4}, "model.hyena: expected options by name, got 4"),
        ({"hyena": {"filter": "magic"}}, "model.hyena: option filter cannot be 'magic'"),
        ({"hyena": {"terms": 7}}, r"filters.0.weight is 128 float32, but the checkpoint's own options make it 56"),
    ],
    ids=str,
)
def test_foreign_options_are_one_line(options: dict[str, Any], message: str, trained: Path, tmp_path: Path) -> None:
    tensors, header = checkpoint.load(trained / BEST)
    checkpoint.save(tmp_path / BEST, tensors, hostile(header, options))
    with pytest.raises(UserError, match=message) as refused:
        load_trained(tmp_path)
    assert str(refused.value).count("\n") == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(folder, make_store(), epochs=1)
    return folder


@pytest.mark.parametrize("options", [{"dim": 60_000}, {"blocks": 1000}], ids=str)
def test_no_model_is_built_that_the_tensors_do_not_bear_out(
    options: dict[str, int], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, header = checkpoint.load(trained / BEST)
    checkpoint.save(tmp_path / BEST, tensors, hostile(header, options))
    built = []
    monkeypatch.setattr(trained_module, "SequenceModel", lambda *arguments: built.append(arguments))
    with pytest.raises(UserError, match="by the checkpoint's own options"):
        load_trained(tmp_path)
    assert not built


def test_foreign_headers_and_tensors_are_one_line(trained: Path, tmp_path: Path) -> None:
    tensors, header = checkpoint.load(trained / BEST)
    config = header["config"]
    without_model = {name: value for name, value in config.items() if name != "model"}
    changed = {name: tensor for name, tensor in tensors.items() if name != "item_ids.values"}
    half = tensors | {"model.bias": tensors["model.bias"].half()}
    for content, head, message in (
        (tensors, {}, "no configuration in this checkpoint"),
        (tensors, {"config": without_model}, "model: expected options by name, got None"),
        (tensors, hostile(header, {"epochs": "many"}, "training"), "training: option epochs cannot be 'many'"),
        (tensors, hostile(header, {"pages": 1}, "source"), "source: unknown option 'pages'"),
        (changed, header, "ids: expected values"),
        (half, header, "bias is 30 float16, but the checkpoint's own options make it 30 float32"),
    ):
        checkpoint.save(tmp_path / BEST, content, head)
        with pytest.raises(UserError, match=message):
            load_trained(tmp_path)


def test_a_foreign_last_is_one_line(trained: Path, tmp_path: Path) -> None:
    tensors, header = checkpoint.load(trained / LAST)
    name = next(name for name in tensors if name.startswith("optimizer.") and name.endswith("/exp_avg"))
    for content, head, message in (
        (tensors, header | {"progress": None}, "progress: expected options by name"),
        (tensors, header | {"progress": header["progress"] | {"step": "x"}}, "progress: option step cannot be 'x'"),
        (tensors, header | {"progress": header["progress"] | {"epoch": 9}}, "its progress does not fit its history"),
        (tensors, header | {"progress": header["progress"] | {"best": ["a", "b", "c"]}}, "does not fit its history"),
        (tensors, header | {"progress": header["progress"] | {"history": [{"epoch": 1}]}}, "does not fit its history"),
        (tensors | {"optimizer.x/step": torch.zeros(())}, header, "optimizer state 'x/step' does not belong"),
        (tensors | {name: torch.zeros(2)}, header, "has another shape than its parameter"),
    ):
        checkpoint.save(tmp_path / LAST, content, head)
        with pytest.raises(UserError, match=message):
            train(tmp_path, make_store(), epochs=1)


@pytest.mark.parametrize(
    "damage", ["cut", "flipped", "foreign", "of another version", "not a number", "without history"]
)
def test_a_damaged_last_says_what_to_do_and_that_works(damage: str, tmp_path: Path) -> None:
    first = train(tmp_path, make_store(), epochs=2)
    last = tmp_path / LAST
    content = bytearray(last.read_bytes())
    tensors, header = checkpoint.load(last)
    if damage == "cut":
        last.write_bytes(content[:-9])
    elif damage == "flipped":
        content[-5] ^= 1
        last.write_bytes(content)
    elif damage == "foreign":
        last.write_bytes(b"nothing")
    elif damage == "other version":
        last.write_bytes(content.replace(b"hyenarec-checkpoint 2", b"hyenarec-checkpoint 9"))
    elif damage == "not a number":
        tensors["model.bias"][0] = torch.nan
        checkpoint.save(last, tensors, header)
    else:
        checkpoint.save(last, tensors, header | {"progress": header["progress"] | {"history": []}})
    with pytest.raises(UserError) as refused:
        train(tmp_path, make_store(), epochs=2)
    way_out = "; remove it, and the same command trains from the start (best.safetensors, the best epoch so far"
    assert str(refused.value).startswith(f"{last}: ") and way_out in str(refused.value)
    assert load_trained(tmp_path).config["data"]["items"] == 30  # the best checkpoint still serves
    last.unlink()
    assert train(tmp_path, make_store(), epochs=2)["test"] == first["test"]


def test_a_last_that_may_not_be_read_is_not_to_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path, make_store(), epochs=1)
    (tmp_path / LAST).unlink()
    (tmp_path / LAST).mkdir()
    with pytest.raises(UserError, match=r"cannot read this checkpoint: Is a directory$"):
        train(tmp_path, make_store(), epochs=1)


def test_a_damaged_best_that_is_served_says_what_to_do(tmp_path: Path) -> None:
    first = train(tmp_path, make_store(), epochs=2)
    (tmp_path / BEST).write_bytes((tmp_path / BEST).read_bytes()[:-4])
    with pytest.raises(UserError, match=r"damaged .*; remove it, and the command that trained this run makes it"):
        Recommender.load(tmp_path)
    (tmp_path / BEST).unlink()
    assert train(tmp_path, make_store(), epochs=2)["test"] == first["test"]
    Recommender.load(tmp_path)
