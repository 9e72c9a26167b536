"""Compiling a package hides torch's warnings about its own internals."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from hyenarec import programs


def test_torchs_own_warnings_do_not_reach_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = []

    def compiled(program: Any, *, package_path: str, inductor_configs: dict[str, Any]) -> None:
        warnings.warn("isinstance(treespec, LeafSpec) is deprecated", FutureWarning, stacklevel=1)
        made.append(package_path)

    monkeypatch.setattr(programs, "use_native", lambda program: None)
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compiled)
    program: Any = object()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        programs.package(program, tmp_path / "step.pt2")
    assert made == [str(tmp_path / "step.pt2")]
