"""The imports between modules: there is no cycle, and no module imports from a layer above its own.

Every import counts, also those inside functions and those by name (``import_module("...")``).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"hyenarec_kernels": ROOT, "hyenarec": ROOT / "python", "benchmarks": ROOT}
# The layers from the bottom up: a module may import from its own room and from rooms earlier in this list. Modules
# outside of all rooms, such as hyenarec.packing, may be used by their whole package.
ROOMS = (
    "hyenarec_kernels.lowrank",
    "hyenarec_kernels.backends",
    "hyenarec_kernels.ops",
    "hyenarec_kernels.nn",
    "hyenarec.data",
    "hyenarec.mixers",
    "hyenarec.cli",
    "benchmarks.harness",
    "benchmarks.report",
    "benchmarks.suites",
    "benchmarks.gpu",
)


def modules() -> dict[str, Path]:
    found = {}
    for package, root in PACKAGES.items():
        for path in (root / package).rglob("*.py"):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imported(tree: ast.AST, known: set[str]) -> Iterator[str]:
    """The modules of this repository (``known``) that a module's source imports."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # An imported name is a submodule, or an object of the package itself.
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else node.module for name in inside]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "import_module":
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        yield from (name for name in names if name in known)


def arrows(sources: dict[str, str]) -> dict[str, set[str]]:
    return {name: set(imported(ast.parse(source), set(sources))) - {name} for name, source in sources.items()}


def room(module: str) -> int | None:
    """The index in ROOMS of the innermost room that holds a module; None for a module outside of all rooms."""
    inside = [place for place, name in enumerate(ROOMS) if module == name or module.startswith(f"{name}.")]
    return max(inside, key=lambda place: len(ROOMS[place]), default=None)


def upward(graph: dict[str, set[str]]) -> list[str]:
    found = []
    for module, targets in graph.items():
        for target in targets:
            here, there = room(module), room(target)
            if here is not None and there is not None and there > here and not module.endswith("__main__"):
                found.append(f"{module} -> {target}")
    return found


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return arrows({name: path.read_text(encoding="utf-8") for name, path in modules().items()})


def test_no_circles(graph: dict[str, set[str]]) -> None:
    assert len(graph) > 100
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules of the cycle


def test_no_arrow_points_up(graph: dict[str, set[str]]) -> None:
    assert not upward(graph)


def test_packages_are_layers(graph: dict[str, set[str]]) -> None:
    """The kernels import neither the recommender nor the benchmarks, and the recommender imports no benchmark."""
    order = list(PACKAGES)
    for module, targets in graph.items():
        for target in targets:
            assert order.index(target.split(".")[0]) <= order.index(module.split(".")[0]), f"{module} -> {target}"


def test_a_circle_and_an_arrow_up_are_seen() -> None:
    circle = arrows({"hyenarec.a": "def f():\n    import hyenarec.b", "hyenarec.b": "from hyenarec import a"})
    with pytest.raises(CycleError):
        TopologicalSorter(circle).prepare()
    hidden = arrows({"hyenarec.data.x": "import_module('hyenarec.cli.y')", "hyenarec.cli.y": ""})
    assert upward(hidden) == ["hyenarec.data.x -> hyenarec.cli.y"]
