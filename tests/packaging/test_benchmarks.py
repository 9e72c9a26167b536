"""The benchmark suites in a wheel: code without results, reached by ``hyenarec bench`` from anywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel without compiled parts puts into site-packages."""
    source, out = (tmp_path_factory.mktemp(name) for name in ("source", "wheel"))
    ignored = shutil.ignore_patterns(
        ".git", ".venv", "build", "*.egg-info", "__pycache__", "runs", "demo", "*.so", ".*_cache", "tests"
    )
    shutil.copytree(ROOT, source, ignore=ignored, dirs_exist_ok=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, source]
    environment = os.environ | {"HYENAREC_BUILD": "0"}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("hyenarec-*.whl")
    zipfile.ZipFile(built).extractall(out / "site")
    return out / "site"


def test_code_without_results(unpacked: Path) -> None:
    shipped = {path.relative_to(unpacked).as_posix() for path in (unpacked / "hyenarec_benchmarks").rglob("*.*")}
    written = {f"hyenarec_benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("*.py")}
    assert shipped == written


def test_runs_outside_the_repository(unpacked: Path, tmp_path: Path) -> None:
    """Isolated from this environment's own install; the other packages come from it."""
    others = [path for path in sys.path if path.endswith("site-packages")]
    program = f"""
import sys
sys.path[:0] = {[str(unpacked)]!r}
sys.path += {others!r}
from hyenarec.cli import main
import hyenarec_benchmarks
assert hyenarec_benchmarks.__file__.startswith({str(unpacked)!r})
main(sys.argv[1:])
"""

    def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-S", "-c", program, "bench", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    listed = bench()
    assert listed.returncode == 0 and "scaling" in listed.stdout, listed.stderr
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    done = bench("report")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "benchmarks/results/report.md").read_text().startswith("# How HyenaRec compares")
    unknown = bench("nothing")
    assert unknown.returncode == 2 and unknown.stderr.startswith("error: no benchmark suite is called 'nothing'")
