"""The API reference names only what exists, and leaves out no public name."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

PAGES = sorted((Path(__file__).parents[2] / "docs/api").glob("*.md"))
DIRECTIVE = re.compile(r"^\.\. auto\w+:: ([\w.]+)\n(?:   :members: (.+)\n)?", re.MULTILINE)
DOCUMENTED = dict(match for page in PAGES for match in DIRECTIVE.findall(page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", DOCUMENTED)
def test_what_a_page_names_exists_and_has_a_docstring(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    documented = getattr(import_module(module), attribute)
    assert documented.__doc__
    for member in filter(None, DOCUMENTED[name].split(", ")):
        assert getattr(documented, member).__doc__, member


@pytest.mark.parametrize(
    "module", ["hyenarec_kernels", "hyenarec_kernels.nn", "hyenarec_kernels.integrations", "hyenarec"]
)
def test_every_public_name_is_documented(module: str) -> None:
    others = {"backends", "nn", "__version__"}  # the two modules have entries of their own
    public = {f"{module}.{name}" for name in import_module(module).__all__ if name not in others}
    assert public <= DOCUMENTED.keys()
