"""Systems and shapes: the one list of what is compared with what, and at which sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hyenarec.config import HyenaConfig, ModelConfig
from hyenarec.errors import UserError
from hyenarec.mixers import MIXERS

DIM, BLOCKS = 64, 2
LENGTHS = (50, 200, 1024, 4096, 16384)  # events of history
TOKENS = 32_768  # events of a training batch
ITEMS = 10_000  # of a generated catalogue
OURS, RIVAL = "hyena", "attention"


@dataclass(frozen=True)
class System:
    """A recommender: what people call it, its mixer, and options of the mixer that are not the defaults."""

    title: str
    mixer: str
    hyena: HyenaConfig = field(default_factory=HyenaConfig)

    def model(self, length: int, dim: int = DIM, blocks: int = BLOCKS) -> ModelConfig:
        """Its shape for histories of ``length`` events."""
        return ModelConfig(mixer=self.mixer, dim=dim, blocks=blocks, max_length=length, hyena=self.hyena)


# Results name a system by its key here, under "mixer".
SYSTEMS: dict[str, System] = {
    "hyena": System("HyenaRec", "hyena"),
    "attention": System("SASRec", "attention"),
    "bert4rec": System("BERT4Rec", "bert4rec"),
    "gru": System("GRU4Rec", "gru"),
    "lru": System("LRURec", "lru"),
    "linoss": System("LinOSS", "linoss"),
    "hydra": System("HydraRec, causal", "hydra"),
    "hydra_bidirectional": System("HydraRec", "hydra_bidirectional"),
    "hytrec": System("HyTRec", "hytrec"),
    "fuxi_linear": System("FuXi-Linear", "fuxi_linear"),
    "grela": System("RecGRELA, causal", "grela"),
    "elastic": System("ELASTIC", "elastic"),
    "hyena_chebyshev": System("HyenaRec, Chebyshev filters", "hyena", HyenaConfig(filter="chebyshev")),
    "hyena_cosine": System("HyenaRec, cosine filters", "hyena", HyenaConfig(filter="cosine")),
    "hyena_implicit": System("HyenaRec, implicit filters", "hyena", HyenaConfig(filter="implicit")),
    "hyena_explicit": System("HyenaRec, explicit filters", "hyena", HyenaConfig(filter="explicit")),
}
MAIN = tuple(MIXERS)  # the systems as their papers have them: every suite's default


def chosen(names: Sequence[str]) -> dict[str, System]:
    """The systems of these names; raises :class:`UserError` for none or an unknown one."""
    if not names or not SYSTEMS.keys() >= set(names):
        raise UserError(f"option mixers: name at least one out of {', '.join(SYSTEMS)}")
    return {name: SYSTEMS[name] for name in names}
