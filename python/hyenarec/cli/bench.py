"""``hyenarec bench``: the front door of the benchmark suites, which are a package of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True)
class Bench:
    """List the benchmark suites. `hyenarec bench SUITE` runs one, `hyenarec bench SUITE --help` explains it."""

    def run(self) -> None:
        import_module("hyenarec_benchmarks.suites").show()


@dataclass(frozen=True)
class RunSuite:
    """One suite with its own options."""

    suite: str
    options: Sequence[str]

    def run(self) -> None:
        import_module("hyenarec_benchmarks.suites").run(self.suite, self.options)
