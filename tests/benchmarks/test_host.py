"""What a mixer call does on the host, counted and not timed: operations of torch and launches, on a null machine."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from typing import Any

import pytest
import torch

from benchmarks.harness.null_machine import null_machine
from benchmarks.suites import host
from hyenarec_kernels import segments

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")

# Two matrix products; the two projections, taps and offset of the short convolution, and coefficients (also multiplied)
# each an addition to where they start; the decay's exponential too.
FORWARD = Counter(mm=2, add=6, mul=1, exp=1)
# Each projection gives two more products, of which its parameter's is scaled; coefficients and decay a factor each.
BACKWARD = Counter(mm=2, addmm=2, mul=2)


def test_nothing_is_hidden_around_the_launches() -> None:
    with null_machine() as launches:
        calls = host.passes()
        assert host.operations(calls["forward"]) == FORWARD
        assert host.operations(calls["forward, no gradients"]) == FORWARD
        assert host.operations(calls["forward and backward"]) == FORWARD + BACKWARD
        before = launches()
        calls["forward"]()
        assert launches() - before == 1
        calls["forward and backward"]()
        assert launches() - before == 1 + 1 + 2


def test_a_hidden_operation_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    with null_machine(), monkeypatch.context() as patched:  # undone before the machine's own
        calls = host.passes()
        patched.setattr(segments, "_check", lambda op, starts, ends, *rest: ends.clamp(0))
        patched.setattr(segments, "readable", lambda t: True)
        assert host.operations(calls["forward"]) == FORWARD + Counter(clamp=1)


def test_the_suite_has_a_line_for_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[list[dict[str, Any]]] = []
    monkeypatch.setattr(sys, "argv", ["host"])
    monkeypatch.setattr(host, "take_turns", lambda calls, *rest: {name: {"min": 2.0} for name in calls})
    monkeypatch.setattr(host, "show_table", lambda title, columns, rows: tables.append(rows))
    threads = torch.get_num_threads()
    host.main()
    torch.set_num_threads(threads)
    ((first, second, last),) = tables
    assert [row["call"] for row in (first, second, last)] == list(host.passes())
    assert last["torch.add"] == 1 and last["torch's launches"] == (FORWARD + BACKWARD).total() == 16
