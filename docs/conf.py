"""Settings of the documentation's generator; ``make docs`` builds the site.

Sphinx, because it is widely kept, imports what it documents, checks every reference, and knows the roles that the
docstrings use. Pages are Markdown (MyST), so that they can be read without the site too.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

project = "HyenaRec"
html_title = "HyenaRec"
html_theme = "furo"
exclude_patterns = ["build"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_use_rtype = False
napoleon_use_ivar = True

# Every reference must be found, except those to other projects' objects.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:class", r"(torch|numpy|np|pathlib|collections|dataclasses)\..+"),
    (r"py:class", r"(Tensor|Path|NDArray|Index|ConvOptions|LogOptions|State|Answer)(\[.+\])?"),
    (r"py:class", r"hyenarec(_kernels\.nn)?\.[a-z_.]+\.[A-Z]\w+"),  # annotations name classes by where they are defined
]

UNQUALIFIED = re.compile(r":(class|func|meth):`(\w+)`")
SECTION = re.compile(r"(Args|Returns|Yields|Raises|Attributes|Example|Note)s?:$")


def formulas_as_code(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Makes the indented formulas of a docstring's prose literal blocks, as they look in the source."""
    end = next((i for i, line in enumerate(lines) if SECTION.match(line)), len(lines))
    for i in range(end - 1, 0, -1):
        previous = next((line for line in reversed(lines[:i]) if line.strip()), "")
        if lines[i].startswith("    ") and not lines[i - 1].strip() and not previous.startswith(" "):
            lines[i:i] = ["::", ""]


def find_by_last_name(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Lets a docstring say ``:class:`UserError``` of an object that is documented elsewhere under its full name."""
    lines[:] = [UNQUALIFIED.sub(r":\1:`.\2`", line) for line in lines]


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", find_by_last_name, priority=400)
    app.connect("autodoc-process-docstring", formulas_as_code, priority=400)  # before napoleon's
