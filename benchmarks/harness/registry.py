"""Systems and shapes: the one list of what is compared with what, and at which sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

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
    """A recommender under the name that people know it by.

    Attributes:
        title: that name.
        line: one line on how it mixes a history, with its source.
        mixer: the mixer of :data:`hyenarec.mixers.MIXERS` that it is built on.
        hyena: the hyena mixer's options, where they differ from the defaults.
        block: the kind of its blocks.
        loss: the loss that is part of the system; None for the loss that the comparison uses.
        repeats: auto for a repeat head where the log has repeats, which the published rivals have not.
    """

    title: str
    line: str
    mixer: str
    hyena: HyenaConfig = field(default_factory=HyenaConfig)
    block: Literal["plain", "ligr"] = "plain"
    loss: Literal["full", "sampled"] | None = None
    repeats: Literal["auto", "off"] = "off"

    def model(self, length: int, dim: int = DIM, blocks: int = BLOCKS) -> ModelConfig:
        """The configuration of its model for histories of ``length`` events."""
        return ModelConfig(
            mixer=self.mixer,
            dim=dim,
            blocks=blocks,
            block=self.block,
            repeats=self.repeats,
            max_length=length,
            hyena=self.hyena,
        )


# Results name a system by its key here, under "mixer".
SYSTEMS: dict[str, System] = {
    "hyena": System(
        "HyenaRec",
        "long convolution with Legendre filters between gates (arXiv 2603.25027)",
        "hyena",
        repeats="auto",
    ),
    "attention": System("SASRec", "causal softmax attention (arXiv 1808.09781)", "attention"),
    "bert4rec": System(
        "BERT4Rec", "softmax attention to both sides, learned on masked items (arXiv 1904.06690)", "bert4rec"
    ),
    "gru": System("GRU4Rec", "gated recurrent unit (arXiv 1511.06939)", "gru"),
    "lru": System("LRURec", "complex diagonal linear recurrence (arXiv 2310.02367)", "lru"),
    "linoss": System("LinOSS", "forced harmonic oscillators (arXiv 2410.03943)", "linoss"),
    "hydra": System(
        "HydraRec, causal",
        "linear attention with a head for each channel, summed over the past (arXiv 2501.01242)",
        "hydra",
    ),
    "hydra_bidirectional": System(
        "HydraRec",
        "the same, summed over both sides, learned on masked items (arXiv 2501.01242)",
        "hydra_bidirectional",
    ),
    "hytrec": System(
        "HyTRec",
        "gated delta rule that decays with elapsed time, and attention to recent events (arXiv 2602.18283)",
        "hytrec",
    ),
    "fuxi_linear": System(
        "FuXi-Linear", "linear channels for content, time and position (arXiv 2602.23671)", "fuxi_linear"
    ),
    "grela": System(
        "RecGRELA, causal", "gated rotary linear attention with a local convolution (arXiv 2506.13315)", "grela"
    ),
    "elastic": System(
        "ELASTIC", "attention to a few learned interests that compress the history (arXiv 2408.09380)", "elastic"
    ),
    "hstu": System(
        "HSTU", "pointwise attention without a softmax, with biases of lag and time (arXiv 2402.17152)", "hstu"
    ),
    "dman": System(
        "DMAN",
        "attention to segments and to memory slots of the earlier ones (arXiv 2102.09174)",
        "dman",
    ),
    "sparsek": System(
        "SparseK", "attention to a recent window and to a few selected events (arXiv 2406.16747)", "sparsek"
    ),
    "gems": System(
        "GEMs", "recent attention, attention to picked events, long convolution, summed (arXiv 2602.13631)", "gems"
    ),
    "ldm": System("LDM", "moving averages at several periods, a predictor for each (arXiv 2412.16572)", "ldm"),
    "attention_repeats": System(
        "SASRec with a repeat head",
        "SASRec, and HyenaRec's mixture with the history's own items",
        "attention",
        repeats="auto",
    ),
    "hyena_local": System(
        "HyenaRec, local attention",
        "softmax attention to the last 32 events beside the convolutions",
        "hyena",
        HyenaConfig(local=32),
        repeats="auto",
    ),
    "hyena_ungated": System(
        "HyenaRec, no gates", "the short and the long convolution alone", "hyena", HyenaConfig(gate="none")
    ),
    "hyena_chebyshev": System(
        "HyenaRec, Chebyshev filters",
        "Chebyshev polynomials in place of Legendre's",
        "hyena",
        HyenaConfig(filter="chebyshev"),
    ),
    "hyena_cosine": System(
        "HyenaRec, cosine filters", "cosines in place of Legendre polynomials", "hyena", HyenaConfig(filter="cosine")
    ),
    "hyena_implicit": System(
        "HyenaRec, implicit filters",
        "the filters of Hyena itself: a small network of the lag (arXiv 2302.10866)",
        "hyena",
        HyenaConfig(filter="implicit"),
    ),
    "hyena_explicit": System(
        "HyenaRec, explicit filters", "a free weight for every lag", "hyena", HyenaConfig(filter="explicit")
    ),
    "esasrec": System(
        "eSASRec",
        "SASRec in gated residual blocks with SwiGLU, by sampled softmax (arXiv 2508.06450)",
        "attention",
        block="ligr",
        loss="sampled",
    ),
    "hyena_logsparse": System(
        "HyenaRec, log-sparse filters",
        "weights for steps of lags that grow with the lag (arXiv 2412.16572)",
        "hyena",
        HyenaConfig(filter="logsparse"),
    ),
}
MAIN = tuple(MIXERS)  # the systems as in their papers: every suite's default


def check_names(names: Sequence[str]) -> None:
    """Raises :class:`UserError` if ``names`` is empty or names an unknown system."""
    if not names or not SYSTEMS.keys() >= set(names):
        raise UserError(f"option mixers: name at least one out of {', '.join(SYSTEMS)}")
