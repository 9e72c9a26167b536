"""The table of suites, and how one is run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module


class NoSuchSuite(Exception):
    """Raised for an unknown suite; the message is one line that names all suites."""


@dataclass(frozen=True)
class Suite:
    """A module of this package with a ``main()``, imported only when it is run, and one line on what it measures."""

    module: str
    line: str


SUITES: dict[str, Suite] = {
    "operator": Suite("suites.operator", "the convolutions alone on a CPU, against FFT, attention and a copy"),
    "quick": Suite("suites.quick", "the operators in half a minute, by pytest-benchmark, to compare a change with"),
    "step": Suite("suites.step", "whole training steps on a log, packed and padded: tokens a second, peak memory"),
    "scaling": Suite("suites.scaling", "training steps against history length, and the exponent of their growth"),
    "serving": Suite("suites.serving", "latency of scoring one more event: full forward, streaming step, top-k"),
    "service": Suite("suites.service", "hyenarec serve under load: requests a second and latency by users at once"),
    "accuracy": Suite("suites.accuracy", "ranking metrics of every system on a log, over seeds, beside the baselines"),
    "capability": Suite("suites.capability", "how much of a known long memory each system learns, by length and cost"),
    "cache": Suite(
        "suites.cache", "states of users: ranking, memory and time of SASRec's caches and HyenaRec's states"
    ),
    "hosts": Suite("suites.hosts", "attention replaced in other libraries on a log: accuracy, time, memory"),
    "ablation": Suite("suites.ablation", "accuracy of the hyena mixer with each of its options changed alone"),
    "features": Suite("suites.features", "item features on a log: for rare items, and for items never seen"),
    "losses": Suite("suites.losses", "losses over a catalogue, by chunk size"),
    "catalogue": Suite("suites.catalogue", "training steps over very many items, in one process and in several"),
    "loading": Suite("suites.loading", "seconds and memory of reading a log of ten million events"),
    "host": Suite("suites.host", "host time of a mixer call, without a device: no kernel is launched"),
    "gpu": Suite("gpu.suite", "the operators, their tests and training steps on a GPU, in minutes"),
    "rehearsal": Suite("gpu.rehearsal", "the suite gpu without a GPU, and how long it would take with one"),
    "compiled": Suite("gpu.compiled", "registers and memory of every Triton kernel, compiled without a GPU"),
    "model": Suite("gpu.model", "what the kernels would take on an H100: estimates from the compiled code"),
    "report": Suite("report.page", "one Markdown page from the folder of results"),
}


def run(name: str, options: Sequence[str]) -> None:
    """Run a suite as if ``options`` were its program's own. Raises :class:`NoSuchSuite` for an unknown name."""
    if name not in SUITES:
        raise NoSuchSuite(f"no benchmark suite is called {name!r}: choose one of {', '.join(SUITES)}")
    suite = import_module(f"benchmarks.{SUITES[name].module}")
    sys.argv = [f"python -m benchmarks {name}", *options]
    suite.main()


def show() -> None:
    """Print the table, one line per suite."""
    for name, suite in SUITES.items():
        print(f"{name:<10} {suite.line}")
