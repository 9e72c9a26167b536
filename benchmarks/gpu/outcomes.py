"""A pytest plugin that writes each test's outcome at once, so that none is lost when the tests are stopped.

    HYENAREC_OUTCOMES=FILE python -m pytest -p benchmarks.gpu.outcomes ...

Each line is the JSON of one test: its id, ``passed``, ``failed``, ``skipped`` or ``deselected``, why, and its seconds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import pytest

VARIABLE = "HYENAREC_OUTCOMES"


class Outcomes:
    def __init__(self, path: str, worker: str | None) -> None:
        self.path, self.worker = path, worker  # None where there are no workers, or in the process that starts them

    def write(self, **line: Any) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # A test has three reports. xdist passes its workers' reports on to the first process, which writes them.
        if self.worker is None and (report.when == "call" or report.outcome != "passed"):
            why = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longreprtext.splitlines()[-1:]
            seconds = round(report.duration, 2)
            self.write(test=report.nodeid, outcome=report.outcome, why="".join(why), seconds=seconds)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if self.worker is None and report.failed:
            last = report.longreprtext.splitlines()[-1:]
            self.write(test=report.nodeid, outcome="failed", why="".join(last), seconds=0)

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        if self.worker in (None, "gw0"):  # each worker collects for itself
            for item in items:
                self.write(test=item.nodeid, outcome="deselected", why="", seconds=0)


def pytest_configure(config: pytest.Config) -> None:
    worker = getattr(config, "workerinput", {}).get("workerid")
    config.pluginmanager.register(Outcomes(os.environ[VARIABLE], worker))
