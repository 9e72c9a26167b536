"""The suite on the service: it times answers that are checked, and does not repeat what is already measured."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.checks import refusal
from benchmarks.harness.recording import read
from benchmarks.report import tables
from benchmarks.suites import service
from hyenarec.errors import UserError

TINY = service.ServiceSettings(dim=8, items=50, users=20, length=6, visit=3, seconds=0.5, device="cpu")


def test_result_is_whole_and_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "service"
    service.Service(mixers=("gru",), concurrent=(1, 4), mixes=("events", "both"), out=out, settings=TINY).run()
    cases = read(out.with_suffix(".json"))["cases"]
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert [(case["mix"], case["concurrent"], case["request"]) for case in cases] == [
        ("events", 1, "event"),
        ("events", 4, "event"),
        ("both", 1, "event"),
        ("both", 1, "recommend"),
        ("both", 4, "event"),
        ("both", 4, "recommend"),
    ]
    for case in cases:
        assert refusal(case) is None and case["check"]["against"] == "whole histories"
        assert case["per_second"] * TINY.seconds == pytest.approx(case["ms"]["rounds"], abs=0.1)

    lines = tables.service(read(out.with_suffix(".json")))
    assert [line for line in lines if line.startswith("Mix")] == [
        f"Mix `{mix}`, by people at once:" for mix in ("events", "both")
    ]
    assert sum(line.startswith("| GRU4Rec, event |") for line in lines) == 2

    def no_more(*arguments: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(service, "running", no_more)
    service.Service(mixers=("gru",), concurrent=(4,), mixes=("both", "events"), out=out, settings=TINY).run()
    assert read(out.with_suffix(".json"))["cases"] == cases


def test_check_is_red_where_the_service_has_another_model(tmp_path: Path) -> None:
    with service.running("gru", tmp_path, TINY) as (port, right):
        assert refusal({"check": asyncio.run(service.checked(port, right, TINY))}) is None
        (tmp_path / "other").mkdir()
        wrong = service.untrained("attention", tmp_path / "other/best", TINY)
        assert "equivalence check red" in str(refusal({"check": asyncio.run(service.checked(port, wrong, TINY))}))
        with pytest.raises(ConnectionError, match="Extra inputs"):
            asyncio.run(ask_wrongly(port))


async def ask_wrongly(port: int) -> None:
    connection = await service.Connection.to(port)
    await connection.ask("GET", "/recommend?user=ann&no=1")


def test_bad_options() -> None:
    with pytest.raises(UserError, match="bert4rec keeps no state"):
        service.Service(mixers=("bert4rec",)).run()
    for wrong in ({"mixes": ("all",)}, {"concurrent": (0,)}, {"concurrent": ()}):
        with pytest.raises(UserError, match="options mixes and concurrent"):
            service.Service(**wrong).run()  # type: ignore[arg-type]
