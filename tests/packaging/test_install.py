"""Installing as a new user does: from a source tree, into a fresh environment, with plain pip."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).parents[2]
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None or not Path(sysconfig.get_path("purelib"), "torch").is_dir(),
    reason="no C++ compiler, or no torch beside pip",
)


def copy_tree(copy: Path) -> Path:
    """Copies the source tree, so that a build leaves nothing behind in it."""
    ignored = shutil.ignore_patterns(
        ".git", ".venv", "build", "*.egg-info", "__pycache__", "runs", "demo", "*.so", ".*_cache"
    )
    shutil.copytree(ROOT, copy, ignore=ignored)
    return copy


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_tree(tmp_path_factory.mktemp("source") / "hyenarec")


def pip(python: Path | str, *arguments: object, **environment: str) -> str:
    """Runs this environment's pip on the environment of ``python``, and returns what it prints."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    command += map(str, arguments)
    # Python compiles modules when it imports them; pip would compile all of them
    environment = os.environ | {"PIP_COMPILE": "0"} | environment
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def make_environment(folder: Path) -> Path:
    """Makes an environment that can import this one's torch, but has no hyenarec."""
    venv.create(folder)
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


# Kernels that have names but compute nothing. Compiling the real ones would take most of the time, and this wheel is
# only inspected.
STAND_IN = """
#include "args.h"
#define QUOTED(name) #name
#define NAME_OF(isa) QUOTED(isa)
namespace hyenarec::HYENAREC_ISA { const Kernels kernels = {NAME_OF(HYENAREC_ISA)}; }
"""


@pytest.fixture(scope="module", params=["stand-in", pytest.param("whole", marks=pytest.mark.slow)])
def build(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A wheel built in isolation with a broken nvcc: its path, what pip printed, and what nvcc was called with."""
    source = copy_tree(tmp_path_factory.mktemp("source") / "hyenarec")
    if request.param == "stand-in":
        (source / "csrc/cpu/kernels.cpp").write_text(STAND_IN)
    out, tools = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("tools")
    nvcc, called = tools / "nvcc", tools / "called"
    nvcc.write_text(f"#!/bin/sh\necho \"$@\" >> '{called}'\necho 'nvcc error   : it is broken' >&2\nexit 3\n")
    nvcc.chmod(0o755)
    path = os.pathsep.join([str(tools), os.environ["PATH"]])
    # -O0: this wheel is inspected, not timed
    environment = {"PATH": path, "CUDA_HOME": "", "HYENAREC_CXXFLAGS": "-O0"}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("HYENAREC_CUDA_ARCHS", raising=False)
        said = pip(sys.executable, "wheel", "-v", "--no-deps", "--wheel-dir", out, source, **environment)
    (built,) = out.glob("hyenarec-*.whl")
    return built, said, called.read_text() if called.exists() else ""


def test_the_wheel_holds_both_packages_types_and_licence(build: tuple[Path, str, str]) -> None:
    names = zipfile.ZipFile(build[0]).namelist()
    for name in (
        "hyenarec_kernels/py.typed",
        "hyenarec/py.typed",
        "hyenarec/cli/__init__.py",
        "hyenarec_kernels/nn/mixer.py",
    ):
        assert name in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests", "benchmarks", "python/", "csrc")) for name in names)


@needs_compiler
def test_a_broken_nvcc_costs_the_cuda_backend_alone(build: tuple[Path, str, str], tmp_path: Path) -> None:
    wheel, said, _ = build
    lines = [line.strip() for line in said.splitlines() if "hyenarec: no " in line]
    assert len(lines) == 1
    assert lines[0].startswith("hyenarec: no CUDA backend: ") and lines[0].endswith(
        "nvcc exited with 3: nvcc error   : it is broken"
    )
    zipfile.ZipFile(wheel).extractall(tmp_path)
    program = (
        "from hyenarec_kernels.backends import BACKENDS as b; print([b[name].probe() for name in ('cpu', 'cuda')])"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stdout.startswith("[None, 'the extension was compiled without CUDA"), done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
@pytest.mark.skipif("HYENAREC_CUDA_ARCHS" in os.environ, reason="HYENAREC_CUDA_ARCHS is set")
def test_nvcc_is_used_where_it_is_found() -> None:
    """The extension that is installed in this environment has its CUDA part."""
    from hyenarec_kernels.backends import compiled

    assert compiled.probe() is None and compiled.has_cuda()


@pytest.fixture
def cuda_targets(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """The function of setup.py that interprets HYENAREC_CUDA_ARCHS."""
    monkeypatch.setattr(setuptools, "setup", lambda **options: None)
    found: Callable[[str], list[str]] = runpy.run_path(str(ROOT / "setup.py"))["cuda_targets"]
    return found


def test_architectures(cuda_targets: Callable[[str], list[str]]) -> None:
    sm80, sm90, ptx90 = (
        f"-gencode=arch=compute_{arch},code={kind}_{arch}" for arch, kind in ((80, "sm"), (90, "sm"), (90, "compute"))
    )
    assert cuda_targets("80;90+PTX") == cuda_targets("80; 90;90+PTX;") == [sm80, sm90, ptx90]
    assert cuda_targets("90") == [sm90]
    assert cuda_targets("90-virtual") == [ptx90] and cuda_targets("90;90-virtual") == cuda_targets("90+PTX")
    assert cuda_targets("120a") == ["-gencode=arch=compute_120a,code=sm_120a"]
    assert cuda_targets("") == []


@needs_compiler
def test_a_wheel_is_compiled_for_the_default_architectures(
    build: tuple[Path, str, str], cuda_targets: Callable[[str], list[str]]
) -> None:
    calls = [line.split() for line in build[2].splitlines()]
    assert len(calls) == len(list(ROOT.glob("csrc/cuda/*.cu")))
    for call in calls:
        assert [word for word in call if word.startswith("-gencode")] == cuda_targets("80;90+PTX")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_architectures_as_nvcc_reads_them(cuda_targets: Callable[[str], list[str]], tmp_path: Path) -> None:
    (tmp_path / "empty.cu").touch()
    command = ["nvcc", "--dryrun", *cuda_targets("80;90+PTX"), "-c", "empty.cu"]
    plan = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stderr
    (line,) = [line for line in plan.splitlines() if "fatbinary" in line and "--image3" in line]
    kinds = re.findall(r"--image3=kind=(\w+),sm=(\d+)", line)
    assert sorted(kinds) == [("elf", "80"), ("elf", "90"), ("ptx", "90")]


@pytest.mark.parametrize("wrong", ["nonsense", "8.0", "75", "80,90", "80+ptx", "80-real", "-80", "80;;9"])
def test_wrong_architectures_give_one_line(wrong: str, cuda_targets: Callable[[str], list[str]]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cuda_targets(wrong)
    line = str(stopped.value)
    assert "\n" not in line and line.startswith("hyenarec: HYENAREC_CUDA_ARCHS: expected ") and repr(wrong) in line


def test_an_install_for_wrong_architectures_says_so(source: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "build_ext"]
    environment = os.environ | {"HYENAREC_CUDA_ARCHS": "8.9"}
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("hyenarec: HYENAREC_CUDA_ARCHS: expected ")


@pytest.mark.parametrize("wrong", ["2", "no", "false", " 0", "off"])
def test_building_is_asked_for_by_0_and_1_alone(source: Path, wrong: str) -> None:
    command = [sys.executable, "setup.py", "-q", "--version"]
    environment = os.environ | {"HYENAREC_BUILD": wrong}
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"hyenarec: HYENAREC_BUILD={wrong}: allowed are 0 and 1"


@pytest.mark.parametrize("native", ["0", "1"])
def test_a_source_distribution_holds_all_sources(native: str, source: Path, tmp_path: Path) -> None:
    program = f"from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})"
    environment = os.environ | {"HYENAREC_BUILD": native}
    subprocess.run([sys.executable, "-c", program], cwd=source, capture_output=True, check=True, env=environment)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    sources = {str(path.relative_to(source)) for path in (source / "csrc").rglob("*") if path.is_file()}
    assert sources <= names


def test_building_asks_for_no_torch(source: Path) -> None:
    import tomllib

    requires = tomllib.loads((source / "pyproject.toml").read_text())["build-system"]["requires"]
    assert [name.split(">")[0] for name in requires] == ["setuptools"]


# 6 s each. Only the plain one runs in `make test`, which itself is an editable install.
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param((), id="plain"),
        pytest.param(("--editable",), id="editable", marks=pytest.mark.slow),
        pytest.param(("--no-build-isolation",), id="no isolation", marks=pytest.mark.slow),
    ],
)
def test_pip_install(arguments: tuple[str, ...], source: Path, tmp_path: Path) -> None:
    python = make_environment(tmp_path / "env")
    if "--no-build-isolation" in arguments:
        pip(python, "install", "--quiet", "--upgrade", "setuptools>=77")
    pip(python, "install", "--quiet", "--no-deps", *arguments, source)
    program = (
        "import hyenarec_kernels, sys; from hyenarec_kernels.nn import HyenaMixer; print(hyenarec_kernels.__file__)"
    )
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # its folders would come first
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=bare)
    assert done.returncode == 0, done.stderr
    home = source if "--editable" in arguments else tmp_path
    assert done.stdout.startswith(str(home))
    command = [tmp_path / "env/bin/hyenarec", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=bare)
    assert "recommend" in done.stdout, done.stderr
