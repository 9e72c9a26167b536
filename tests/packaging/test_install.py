"""Installing as a stranger does: a source tree, a fresh environment, plain pip."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree, so that a build leaves nothing behind in it."""
    copy = tmp_path_factory.mktemp("source") / "hyenarec"
    ignored = shutil.ignore_patterns(
        ".git", ".venv", "build", "*.egg-info", "__pycache__", "runs", "demo", "*.so", ".*_cache"
    )
    shutil.copytree(ROOT, copy, ignore=ignored)
    return copy


def pip(python: Path | str, *arguments: object) -> str:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make_environment(folder: Path) -> Path:
    """An environment that sees this one's torch, but has no hyenarec of its own."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    purelib = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    import torch

    (Path(purelib) / "outside.pth").write_text(str(Path(torch.__file__).parents[1]) + "\n")
    return python


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built in isolation, without a compiler in sight."""
    out = tmp_path_factory.mktemp("wheel")
    pip(sys.executable, "wheel", "--quiet", "--no-deps", "--wheel-dir", out, source)
    (built,) = out.glob("hyenarec-*.whl")
    return built


def test_the_wheel_holds_both_packages_types_and_licence(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "hyenarec_kernels/py.typed",
        "hyenarec/py.typed",
        "hyenarec/cli/__init__.py",
        "hyenarec_kernels/nn/mixer.py",
    ):
        assert name in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests", "benchmarks", "python/")) for name in names)


def test_building_asks_for_no_torch(source: Path) -> None:
    import tomllib

    requires = tomllib.loads((source / "pyproject.toml").read_text())["build-system"]["requires"]
    assert [name.split(">")[0] for name in requires] == ["setuptools"]


@pytest.mark.parametrize(
    "arguments", [(), ("--editable",), ("--no-build-isolation",)], ids=["plain", "editable", "no isolation"]
)
def test_pip_install(arguments: tuple[str, ...], source: Path, tmp_path: Path) -> None:
    python = make_environment(tmp_path / "env")
    if "--no-build-isolation" in arguments:
        pip(python, "install", "--quiet", "--upgrade", "setuptools>=77")
    pip(python, "install", "--quiet", "--no-deps", *arguments, source)
    program = (
        "import hyenarec_kernels, sys; from hyenarec_kernels.nn import HyenaMixer; print(hyenarec_kernels.__file__)"
    )
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    home = source if "--editable" in arguments else tmp_path
    assert done.stdout.startswith(str(home))
    command = subprocess.run([tmp_path / "env/bin/hyenarec", "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert "recommend" in command.stdout, command.stderr
