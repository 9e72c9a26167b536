"""The one format of results. Suites write it, the report reads it, and both check it with :func:`validate`.

A result is a JSON file ``NAME.json``, beside ``NAME.png`` where it has a plot:

- ``suite``: the suite that wrote it, a key of :data:`benchmarks.front_door.SUITES`;
- ``title``: one line; ``command``: what to run to measure it again;
- ``environment``: machine, versions and revision (:func:`hyenarec.environment.describe`);
- ``settings``: what its figures share;
- the figures. Speeds are ``cases``, a list; accuracies are ``runs`` and ``baselines``; a suite may add keys of its own.

A case says what was timed (``mixer``, ``length``, ...). It has ``ms``, the summary of its milliseconds, and ``check``,
the outcome of its equivalence check (:mod:`benchmarks.harness.checks`). A case that was left out has neither, but the
reason under ``left_out``. Times of other programs beside it, which compute something else, are summaries by name under
``rivals``.

A run has ``log``, ``mixer``, ``length``, ``seed`` and ``test``, which maps the metric names of
:meth:`hyenarec.evaluation.Ranking.metrics` to values; a baseline has ``log``, ``name``, ``length`` and these metrics.
What other libraries train and measure by themselves is under ``hosts``, with the one metric that all of them have.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from hyenarec import environment
from hyenarec.errors import UserError
from hyenarec.files import write_text
from hyenarec_kernels import backends

RESULTS = Path("benchmarks/results")  # relative to the current folder: in a checkout, the project's own results

Result = dict[str, Any]

HEAD = {"suite": str, "title": str, "command": str, "environment": dict, "settings": dict}
ENVIRONMENT = ("hyenarec", "revision", "torch", "numpy", "python", "device", "kind", "threads", "backend")
FIGURES = {
    "cases": {},
    "runs": {"log": str, "mixer": str, "length": int, "seed": int, "test": dict},
    "baselines": {"log": str, "name": str, "length": int},
    "hosts": {
        "host": str,
        "mixer": str,
        "seed": int,
        "most_epochs": int,
        "epochs": int,
        "best_epoch": int,
        "NDCG@10": float,
        "cpu_seconds_per_epoch": float,
        "peak_megabytes": float,
    },
}
METRICS = ("NDCG@10", "Recall@10", "MRR")  # every run and baseline has these, and may have others


def describe(device: torch.device) -> dict[str, Any]:
    """The environment of a result: machine, versions, revision, and the kernels that serve the hyena mixer there."""
    backend = backends.forced() or backends.available(device.type)[0]
    return {**environment.describe(device), "kind": device.type, "backend": backend}


def write(path: Path, suite: str, title: str, content: Mapping[str, Any], device: torch.device | None = None) -> None:
    """Write a result: the common head, then ``content`` (settings and figures). The file is written whole or not at
    all. ``device`` is the CPU by default.

    Raises :class:`UserError` for a result that breaks the format or cannot be written.
    """
    result = {
        "suite": suite,
        "title": title,
        "command": " ".join((sys.argv[0], shlex.join(sys.argv[1:]))).strip(),
        "environment": describe(device or torch.device("cpu")),
        **content,
    }
    validate(result, path.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(result, indent=1) + "\n")
    print(f"written to {path}")


def read(path: Path) -> Result:
    """A result. Raises :class:`UserError` where ``path`` holds none in this format."""
    result = _load(path)
    validate(result, path.name)
    return result  # type: ignore[no-any-return]


def is_result(path: Path) -> bool:
    """Whether the JSON file is meant to be a result: it names its suite."""
    content = _load(path)
    return isinstance(content, dict) and "suite" in content


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no result ({error})") from error


def earlier_cases(path: Path, settings: Mapping[str, Any], device: torch.device) -> list[dict[str, Any]]:
    """The cases of the result at ``path`` if it has the same settings, machine, versions and revision; else none."""
    if not path.exists():
        return []
    result = read(path)
    same = result["settings"] == settings and result["environment"] == describe(device)
    return list(result["cases"]) if same else []


def left_out_before(case: Mapping[str, Any], cases: Iterable[Mapping[str, Any]]) -> str | None:
    """If the same case was left out at a shorter length, why; else None. ``case`` has no figures yet."""
    for other in cases:
        shorter = {**other, "length": case["length"]}
        if "left_out" in other and other["length"] < case["length"] and case.items() <= shorter.items():
            return f"left out at {other['length']}: {other['left_out'].split(': ')[-1]}"
    return None


def validate(result: Any, name: str) -> None:
    """Raises :class:`UserError`, which names what in the result ``name`` breaks the format."""
    _has(result, HEAD, name)
    missing = [key for key in ENVIRONMENT if key not in result["environment"]]
    if missing:
        raise UserError(f"{name}: environment: {', '.join(missing)} missing")
    if not FIGURES.keys() & result.keys():
        raise UserError(f"{name}: none of {', '.join(FIGURES)} is there")
    for kind, fields in FIGURES.items():
        entries = result.get(kind, [])
        if not isinstance(entries, list):
            raise UserError(f"{name}: {kind}: a list is needed")
        for number, entry in enumerate(entries):
            where = f"{name}: {kind}[{number}]"
            _has(entry, fields, where)
            if kind == "cases":
                _validate_case(entry, where)
            elif kind != "hosts":
                _has(entry.get("test", entry), dict.fromkeys(METRICS, float), where)


def _validate_case(case: Mapping[str, Any], where: str) -> None:
    if ("ms" in case) == ("left_out" in case):
        raise UserError(f"{where}: either ms or left_out is needed")
    if "check" in case:
        _has(case["check"], {"against": str, "error": float, "tolerance": float}, f"{where}: check")
    if "ms" in case:
        for name, summary in {"ms": case["ms"], **case.get("rivals", {})}.items():
            _has(summary, {"median": float, "min": float, "rounds": int}, f"{where}: {name}")
            for key, value in summary.items():
                if not (math.isfinite(value) and value > 0):
                    raise UserError(f"{where}: {name}: {key} is {value}")


def _has(entry: Any, fields: Mapping[str, type], where: str) -> None:
    """Raises :class:`UserError` unless every field is there and of its type; an integer may stand for a float."""
    if not isinstance(entry, dict):
        raise UserError(f"{where}: an object is needed")
    for key, kind in fields.items():
        if key not in entry:
            raise UserError(f"{where}: {key} missing")
        if not isinstance(entry[key], (int, float) if kind is float else kind):
            raise UserError(f"{where}: {key}: {kind.__name__} needed, {entry[key]!r} found")
