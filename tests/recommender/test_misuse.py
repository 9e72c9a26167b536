"""Calls from Python that make no sense get one clear line each, never a bare TypeError."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generated import make_store
from test_training import CONFIG, MODEL, train

from hyenarec import Recommender
from hyenarec.config import AttentionConfig, HyenaConfig, ModelConfig, TrainingConfig
from hyenarec.data import Ids, SequenceStore, global_temporal, leave_one_out, open_data, read_log
from hyenarec.errors import UserError
from hyenarec.source import Source
from hyenarec.training import Trainer

STORE: Any = make_store()
ITEMS = [100, 101, 102]


@pytest.fixture(scope="module")
def recommender(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("misuse") / "run"
    train(folder, make_store(), epochs=1)
    return Recommender.load(folder)


@pytest.mark.parametrize("k", [2.0, 0, "3", -1, True, None, 10**40, [1], float("nan"), 31])
def test_k(k: Any, recommender: Any) -> None:
    for call in (recommender.recommend, lambda *given: list(recommender.answers(*given))):
        with pytest.raises(UserError, match=r"^option k: [^\n]+$"):
            call([ITEMS], k)


def test_numpys_integers_are_whole_numbers(recommender: Any) -> None:
    assert recommender.recommend([ITEMS], np.int64(2)) == recommender.recommend([np.array(ITEMS)], 2)


HISTORIES = [None, 5, [5], "abc", b"x", ["abc"], [{100, 101}], [{100: 1}], [[1.5]], [[None]], [[True]], [[b"x"]]]
HISTORIES += [[[[1]]], [()], [[100.0]], [[float("nan")]], [[object()]], [torch.tensor(ITEMS)]]
HISTORIES += [np.array(5), [np.array(5)], [torch.tensor(5)]]


@pytest.mark.parametrize("histories", HISTORIES, ids=lambda value: type(value).__name__)
def test_histories(histories: Any, recommender: Any) -> None:
    with pytest.raises(UserError, match=r"^(histories: |history 1: )[^\n]+$"):
        recommender.recommend(histories, 2)


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({"exclude_seen": "yes"}, "option exclude_seen: expected True, False or None, got 'yes'"),
        ({"exclude_seen": 0}, "option exclude_seen: expected True, False or None, got 0"),
        ({"unknown": "drop"}, "option unknown: expected 'skip' or 'error', got 'drop'"),
        ({"timestamps": 5}, "timestamps: expected one list for each history, got 5"),
        ({"timestamps": np.array(5)}, "timestamps: expected one list for each history, got array(5)"),
        ({"timestamps": [np.array(5)]}, "timestamps: one is needed for each event of each history"),
        ({"timestamps": [5]}, "timestamps: one is needed for each event of each history"),
    ],
)
def test_options_of_answers(options: dict[str, Any], start: str, recommender: Any) -> None:
    with pytest.raises(UserError) as refused:
        list(recommender.answers([ITEMS], 2, **options))
    assert str(refused.value) == start


def test_devices(tmp_path: Path) -> None:
    train(tmp_path, make_store(), epochs=1)
    devices: tuple[Any, ...] = ("tpu", None, "cuda:x", 5.5, "meta", [1])
    for device in devices:
        with pytest.raises(UserError, match=r"^option device: [^\n]+ cannot be used here: [^\n]+$"):
            Recommender.load(tmp_path, device=device)


@pytest.mark.parametrize("path", ["", 5, None, b"x", []])
@pytest.mark.parametrize("call", [Recommender.load, read_log, open_data, SequenceStore.load, STORE.save, Source])
def test_paths(call: Callable[[Any], Any], path: Any) -> None:
    with pytest.raises(UserError, match=r"^(run|log|data|store): (the path is empty|a path is a string or a pathlib)"):
        call(path)


LOG_OPTIONS = [{"user": 5}, {"item": None}, {"timestamp": 5}, {"time_unit": "hours"}, {"time_unit": None}]


@pytest.mark.parametrize("options", [*LOG_OPTIONS, {"format": "xls"}, {"drop_duplicates": "no"}], ids=str)
def test_options_of_logs(options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n1,2,3\n1,3,4\n")
    calls: tuple[Any, ...] = (read_log, open_data, Source)
    for call in calls:
        with pytest.raises(UserError, match=rf"^option {next(iter(options))}: cannot be [^\n]+$"):
            call(str(tmp_path / "log.csv"), **options)


CONFIGURATIONS: list[tuple[Any, str, Any]] = [
    *((ModelConfig, *case) for case in (("dim", "8"), ("dim", 8.0), ("dim", None), ("dropout", "x"), ("mixer", 5))),
    *((ModelConfig, *case) for case in (("hyena", {}), ("attention", 3), ("blocks", True), ("max_length", [1]))),
    *((TrainingConfig, *case) for case in (("epochs", "8"), ("epochs", 8.5), ("bf16", 1), ("loss", "bce"))),
    *((TrainingConfig, *case) for case in (("seed", 1.5), ("metric", "AUC"), ("device", "tpu"), ("patience", None))),
    *((HyenaConfig, *case) for case in (("terms", "3"), ("filter", "x"), ("horizon", 2.5), ("window", "no"))),
    (AttentionConfig, "heads", None),
]


@pytest.mark.parametrize(("kind", "name", "value"), CONFIGURATIONS)
def test_configurations(kind: Callable[..., Any], name: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"^option (hyena\.|attention\.)?{name}: cannot be [^\n]+$"):
        kind(**{name: value})


@pytest.mark.parametrize(
    "call",
    [
        lambda: leave_one_out(None),
        lambda: global_temporal("x"),
        lambda: global_temporal(STORE, validation="x"),
        lambda: global_temporal(STORE, test=None),
        lambda: STORE.history(-1),
        lambda: STORE.history(10**9),
        lambda: STORE.history(1.0),
        lambda: STORE.history(None),
        lambda: STORE.users_of([-1]),
        lambda: STORE.users_of(["a"]),
        lambda: STORE.users_of(None),
        lambda: STORE.item_ids.decode(None),
        lambda: STORE.item_ids.decode([1.5]),
        lambda: STORE.item_ids.find(None),
        lambda: STORE.item_ids.find("abc"),
        lambda: STORE.item_ids.encode(5),
        lambda: Ids.from_values("abc"),
        lambda: Trainer(None, leave_one_out(STORE), MODEL, CONFIG),
        lambda: Trainer(STORE, None, MODEL, CONFIG),
        lambda: Trainer(STORE, leave_one_out(STORE), {}, CONFIG),
        lambda: Trainer(STORE, leave_one_out(STORE), MODEL, None),
    ],
)
def test_other_public_calls(call: Callable[[], Any]) -> None:
    with pytest.raises(UserError, match=r"^\w+: [^\n]*(expected|is outside)[^\n]*$"):
        call()


def test_scores_of_no_batch(recommender: Any) -> None:
    with pytest.raises(UserError, match=r"^batch: expected a Batch, got 5$"):
        recommender.scores(5)


@pytest.mark.parametrize("change", [{"offsets": [0]}, {"items": None}, {"user_ids": [1]}, {"timestamps": [1]}], ids=str)
def test_stores_of_no_arrays(change: dict[str, Any]) -> None:
    names = ("offsets", "items", "timestamps", "user_ids", "item_ids")
    with pytest.raises(ValueError, match=rf"^{next(iter(change))}: expected (an array of|Ids)"):
        SequenceStore(**{name: getattr(STORE, name) for name in names} | change)


def test_ids_of_no_ids() -> None:
    values: Any
    for values in ([None], [1.5], [[1]], [b"x"], [10**40], [1, "a"]):
        with pytest.raises(TypeError, match=r"^ids: "):
            Ids.from_values(values)
    for values in (None, {"values": [1]}, {"values": np.array(["a"])}):
        with pytest.raises(ValueError, match=r"^ids: expected"):
            Ids.from_arrays(values)


@pytest.mark.parametrize("call", [read_log, open_data, SequenceStore.load, STORE.save, Recommender.load, Source])
def test_a_path_with_a_nul_character(call: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"^\w+: 'a\\x00\.csv' is no path: it has a NUL character$"):
        call("a\0.csv")
