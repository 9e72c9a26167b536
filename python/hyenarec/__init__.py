"""HyenaRec: sequential recommendation for long histories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hyenarec.errors import UserError

try:  # cheap imports, which tell whether the extra is installed
    import rich  # noqa: F401
    import safetensors  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"hyenarec needs {error.name}: pip install 'hyenarec[rec]'", name=error.name) from error

if TYPE_CHECKING:
    from hyenarec.answers import Recommendation
    from hyenarec.recommendation import Recommender

__all__ = ["Recommendation", "Recommender", "UserError"]


def __getattr__(name: str) -> Any:
    """Imports Recommender and Recommendation when first asked for, so that a command's ``--help`` needs no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hyenarec import recommendation

    return getattr(recommendation, name)
