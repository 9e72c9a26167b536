"""HyenaRec: sequential recommendation for long histories."""

from hyenarec.errors import UserError

try:
    from hyenarec.recommendation import Recommendation, Recommender
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"hyenarec needs {error.name}: pip install 'hyenarec[rec]'", name=error.name) from error

__all__ = ["Recommendation", "Recommender", "UserError"]
