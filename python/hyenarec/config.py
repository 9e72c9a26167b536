"""The shape of a model: what a checkpoint carries so that it can be built again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hyenarec.errors import UserError


@dataclass(frozen=True)
class HyenaConfig:
    """The hyena mixer. benchmarks/results/ablation-ml-100k.json has what each option is worth."""

    horizon: int | None = None
    """Filter taps, in events; default: the model's max_length."""
    terms: int = 16
    """Polynomial terms of a filter."""
    window: bool = True
    """Multiply each filter by a learned exponential decay."""
    filter: Literal["legendre", "chebyshev", "cosine", "implicit", "explicit"] = "legendre"
    """How the long filter is parameterised."""
    order: int = 2
    """Gated convolutions: order 2 has one long convolution."""
    gate: Literal["identity", "sigmoid", "silu", "none"] = "identity"
    """Function of the last gate; none leaves all gates out."""
    short_width: int = 4
    """Taps of the short convolution."""


@dataclass(frozen=True)
class AttentionConfig:
    """Mixers with heads: attention, bert4rec, hytrec, fuxi_linear, grela, elastic."""

    heads: int = 2
    """Heads; a divisor of dim."""


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a model. A checkpoint carries it."""

    mixer: str = "hyena"
    """Token mixer: hyena (HyenaRec), attention (SASRec), bert4rec, gru (GRU4Rec), lru (LRURec), linoss (LinOSS), hydra
    or hydra_bidirectional (HydraRec), hytrec, fuxi_linear, grela (RecGRELA) or elastic."""
    dim: int = 64
    """Channels."""
    blocks: int = 2
    """Mixer + feed-forward blocks."""
    max_length: int = 200
    """Events of history that the model reads; longer histories are cut to their last events."""
    dropout: float = 0.2
    """Dropout on embeddings, mixer outputs and feed-forward layers."""
    hyena: HyenaConfig = field(default_factory=HyenaConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)

    def __post_init__(self) -> None:
        for name, low in (("dim", 1), ("blocks", 1), ("max_length", 1)):
            if getattr(self, name) < low:
                raise UserError(f"option {name}: {getattr(self, name)} is below {low}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"option dropout: {self.dropout} is outside [0, 1)")
        if self.dim % self.attention.heads:
            raise UserError(f"option attention.heads: {self.attention.heads} does not divide dim {self.dim}")
