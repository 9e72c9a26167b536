"""What holds for all adapters: a library is imported only by its own adapter."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

import hyenarec_kernels.integrations
from tests.interpreter import python

ROOT = Path(__file__).parents[2]
HOSTS = sorted(path.name for path in (ROOT / "examples/hosts").iterdir() if (path / "train.py").exists())
ADAPTERS = {path.stem: path for path in Path(hyenarec_kernels.integrations.__path__[0]).glob("*.py")}


def imports(path: Path) -> set[str]:
    """The top-level packages outside the standard library that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names)


def test_only_adapters_import_more_than_torch() -> None:
    beyond = {name for name, path in ADAPTERS.items() if imports(path) - {"torch", "hyenarec_kernels"}}
    assert {"rectools", "replay", "recbole", "rechub"} <= beyond
    assert not beyond & {"__init__", "attention", "swap", "jagged"}


def test_importing_the_integrations_imports_no_adapter_of_a_library() -> None:
    program = "import sys, hyenarec_kernels.integrations; print([m for m in sys.modules if 'integrations.' in m])"
    done = python("-c", program)
    assert done.returncode == 0, done.stderr
    loaded = {name.rpartition(".")[2] for name in ast.literal_eval(done.stdout)}
    assert {"attention", "swap"} <= loaded
    assert not loaded & {"rectools", "replay", "recbole", "rechub", "transformers"}


@pytest.mark.parametrize("host", HOSTS)
def test_every_example_has_its_requirements(host: str) -> None:
    lines = (ROOT / "examples/hosts" / host / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")]


def test_every_example_has_its_nightly_job() -> None:
    workflow = (ROOT / ".github/workflows/hosts.yml").read_text(encoding="utf-8")
    [names] = re.findall(r"name: \[(.+)\]", workflow)
    assert sorted(names.split(", ")) == HOSTS
