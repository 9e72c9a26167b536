"""What a mixer call does on the host: torch operations and kernel launches are counted, on a machine that runs no
kernel."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.harness.null_machine import null_machine
from benchmarks.harness.recording import read
from benchmarks.suites import host
from hyenarec_kernels import segments

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")

# torch: two matrix products. Our launches: one makes the parameters, one runs the short convolution, and three the long
# one (its taps, where sequences lie, and the products).
FORWARD, OUR_FORWARD = Counter(mm=2), 5
# torch: two more products for each projection. Our launches: five for the long convolution (taps, where sequences lie,
# products, and the sums and the gradients of its parameters), two for the short one (rows and sums), and one for the
# gradients of the stored parameters.
BACKWARD, OUR_BACKWARD = Counter(mm=4), 8
# What zeroing the padding takes: positions (`arange` resizes), which of them are real, and a `where`, which counts
# twice.
PADDING = Counter(resize_=1, lt=1, where=2)


def test_nothing_is_hidden_around_the_launches() -> None:
    with null_machine() as launches:
        calls = host.passes()
        assert host.operations(calls["forward"]) == FORWARD
        assert host.operations(calls["forward, no gradients"]) == FORWARD
        assert host.operations(calls["forward and backward"]) == FORWARD + BACKWARD
        assert host.operations(calls["padded, both"]) == FORWARD + BACKWARD
        assert host.operations(calls["padded with lengths, both"]) == FORWARD + BACKWARD + PADDING
        for name in ("short_conv", "gated_short_conv", "long_conv", "legendre_conv"):
            assert host.operations(calls[f"{name}, both"]) == Counter(), name
        before = launches()
        calls["forward"]()
        assert launches() - before == OUR_FORWARD
        calls["forward and backward"]()
        assert launches() - before == 2 * OUR_FORWARD + OUR_BACKWARD


def test_a_hidden_operation_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    with null_machine(), monkeypatch.context() as patched:  # the patches end before the null machine's own
        calls = host.passes()
        patched.setattr(segments, "_check", lambda op, starts, ends, *rest: ends.clamp(0))
        patched.setattr(segments, "readable", lambda t: True)
        assert host.operations(calls["forward"]) == FORWARD + Counter(clamp=1)


def test_the_suite_has_a_line_for_each_call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tables: list[list[dict[str, Any]]] = []
    monkeypatch.setattr(sys, "argv", ["host", "--out", str(tmp_path / "host.json")])
    times = {"min": 2.0, "median": 3.0, "rounds": 4}
    monkeypatch.setattr(host, "take_turns", lambda calls, *rest: dict.fromkeys(calls, times))
    monkeypatch.setattr(host, "show_table", lambda title, columns, rows: tables.append(rows))
    threads = torch.get_num_threads()
    host.main()
    torch.set_num_threads(threads)
    (rows,) = tables
    assert [row["call"] for row in rows] == list(host.passes())
    assert rows[2]["torch.add"] == 1 and rows[2]["torch's launches"] == (FORWARD + BACKWARD).total() == 6
    assert rows[2]["our launches"] == OUR_FORWARD + OUR_BACKWARD
    assert [case["ms"]["min"] for case in read(tmp_path / "host.json")["cases"]] == [0.002] * len(rows)
