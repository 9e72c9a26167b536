"""The configuration of a model and of its training, which a checkpoint carries so that both can be repeated.

Needs no torch, so that a command can explain its options before anything large is imported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from hyenarec.errors import UserError, shortened

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

MANY = 2**31 - 1  # upper limit of options that only count something
LONGEST = 2**20  # events of a history, taps of a filter
BASIS_VALUES = 2**25  # of a filter's basis, terms x taps: 256 MiB in float64, which no tensor of a checkpoint bounds
# The most items that loss auto scores all: with so many, a step of 6,400 events takes 1.2 s on one core of a Sapphire
# Rapids Xeon, and 0.19 s with 1,024 negatives.
FULL_LOSS_ITEMS = 20_000
LARGEST_SEED = 2**32 - 1  # a step's seed is computed from it and must fit into 64 bits

MIXERS_THAT_DECOUPLE = ("attention", "hyena")
# Hyena has heads too, with --hyena.local.
MIXERS_WITH_HEADS = (
    *("attention", "bert4rec", "hytrec", "fuxi_linear", "grela", "elastic"),
    *("hstu", "dman", "sparsek", "gems"),
)

# They see the whole history, and do not predict the next item.
BIDIRECTIONAL = ("bert4rec", "hydra_bidirectional")

# Lowest and highest value of every number among the options.
HYENA_RANGES = {
    "horizon": (1, LONGEST),
    "terms": (1, 1024),
    "order": (1, 16),
    "short_width": (1, 64),
    "local": (2, 4096),
}
ATTENTION_RANGES = {"heads": (1, 2**16), "cache_events": (2, LONGEST)}
MODEL_RANGES = {"dim": (1, 2**16), "blocks": (1, 1024), "max_length": (1, LONGEST)}
TRAINING_RANGES: dict[str, tuple[float, float]] = {
    "epochs": (1, MANY),
    "batch_size": (1, MANY),
    "learning_rate": (1e-12, 1e30),
    "warmup_steps": (0, MANY),
    "weight_decay": (0, 1e30),
    "clip_norm": (0, 1e30),
    "negatives": (1, 1_000_000),
    "patience": (1, MANY),
    "evaluate_every": (1, MANY),
    "checkpoint_minutes": (0, 1e30),
    "seed": (0, LARGEST_SEED),
}


def check_ranges(config: object, ranges: Mapping[str, tuple[float, float]], prefix: str = "") -> None:
    """Raises :class:`UserError` for the first option that lies outside its range or is not a number; None is fine."""
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if value is None:
            continue
        if value != value:  # NaN; math.isnan fails for an integer of 400 digits
            raise UserError(f"option {prefix}{name}: {value} is not a number")
        if value < low:
            raise UserError(f"option {prefix}{name}: {shortened(value)} is below {low}")
        if value > high:
            raise UserError(f"option {prefix}{name}: {shortened(value)} is above {high}")


def check_types(values: Mapping[str, object], hints: Mapping[str, Any], prefix: str = "") -> None:
    """Raises :class:`UserError` for the first of ``values`` that is not of the type that ``hints`` has for it."""
    for name, value in values.items():
        hint = hints[name]
        if not _fits(value, hint):
            allowed = [str(choice) for part in (hint, *get_args(hint)) for choice in _choices(part)]
            way_out = f"; it must be one of {', '.join(allowed)}" if allowed else ""
            raise UserError(f"option {prefix}{name}: cannot be {shortened(value)}{way_out}")


def check_fields(config: Any, prefix: str = "") -> None:
    """:func:`check_types` of a dataclass."""
    check_types(
        {option.name: getattr(config, option.name) for option in fields(config)}, get_type_hints(type(config)), prefix
    )


def _choices(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) is Literal else ()


@dataclass(frozen=True)
class HyenaConfig:
    """The hyena mixer. benchmarks/results/ablation-ml-100k.json shows what each option is worth."""

    horizon: int | None = None
    """Filter taps, in events; default: the model's max_length."""
    terms: int = 16
    """Polynomial terms of a filter."""
    window: bool = True
    """Multiply each filter by a learned exponential decay."""
    filter: Literal["legendre", "chebyshev", "cosine", "implicit", "explicit", "logsparse"] = "legendre"
    """How the long filter is parameterised."""
    order: int = 2
    """Gated convolutions: order 2 has one long convolution."""
    gate: Literal["identity", "sigmoid", "silu", "none"] = "identity"
    """Function of the last gate; none leaves all gates out."""
    short_width: int = 4
    """Taps of the short convolution."""
    local: int | None = None
    """Newest events that an additional softmax attention sees; its output is added to that of the convolutions.
    Default: no attention."""

    def __post_init__(self) -> None:
        check_fields(self, "hyena.")
        check_ranges(self, HYENA_RANGES, "hyena.")


HYENA_OPTIONS = tuple(option.name for option in fields(HyenaConfig))
HYENA_FILTER_OPTIONS = ("horizon", "terms", "window", "filter")


@dataclass(frozen=True)
class AttentionConfig:
    """Mixers with heads: attention, bert4rec, hytrec, fuxi_linear, grela, elastic, hstu, dman, sparsek, gems."""

    heads: int = 2
    """Heads; a divisor of dim."""
    cache: Literal["full", "window", "citrus"] = "full"
    """Which events the mixer attention remembers when it reads them one at a time: all of them (full), the last ones
    (window), or the last ones and those that they attend to (citrus)."""
    cache_events: int | None = None
    """Events that a cache window or citrus holds; default: max_length."""

    def __post_init__(self) -> None:
        check_fields(self, "attention.")
        check_ranges(self, ATTENTION_RANGES, "attention.")


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a model. A checkpoint carries it."""

    mixer: str = "hyena"
    """Token mixer: hyena (HyenaRec), attention (SASRec), bert4rec, gru (GRU4Rec), lru (LRURec), linoss (LinOSS), hydra
    or hydra_bidirectional (HydraRec), hytrec, fuxi_linear, grela (RecGRELA), elastic, hstu, dman, sparsek, gems or
    ldm."""
    dim: int = 64
    """Channels."""
    blocks: int = 2
    """Mixer + feed-forward blocks."""
    block: Literal["plain", "ligr"] = "plain"
    """plain: pre-norm residual blocks; ligr: gates computed from the residual stream multiply what a block adds to it,
    and the feed-forward is a SwiGLU. eSASRec is mixer attention, block ligr and loss sampled."""
    embedding: Literal["shared", "decoupled"] = "shared"
    """shared: one embedding of an item for everything; decoupled: a second, small one makes the queries and keys of
    attention, or the gates of hyena, so that what is looked for and what is found there do not compete for the same
    numbers (DARE)."""
    repeats: Literal["auto", "on", "off"] = "auto"
    """A repeat head learns how likely an item of the history is to come again, by how many events ago it was read. It
    matters only where seen items may be recommended. auto: on where at least one training event in ten repeats an
    earlier one of its user; or as in the model to go on from."""
    max_length: int = 200
    """Events of history that the model reads; longer histories are cut to their last events."""
    dropout: float = 0.2
    """Dropout on embeddings, mixer outputs, feed-forward layers and, in hyena, channels of gates."""
    hyena: HyenaConfig = field(default_factory=HyenaConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)

    @property
    def small_dim(self) -> int:
        """Channels of the second embedding of items, 0 where there is none."""
        return max(1, self.dim // 4) if self.embedding == "decoupled" else 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_ranges(self, MODEL_RANGES)
        if not 0 <= self.dropout <= 0.99:  # more, rounded to 1/256, might drop everything
            raise UserError(f"option dropout: {self.dropout} is outside [0, 0.99]")
        heads = self.mixer in MIXERS_WITH_HEADS or (self.mixer == "hyena" and self.hyena.local is not None)
        if heads and self.dim % self.attention.heads:
            raise UserError(f"option attention.heads: {self.attention.heads} does not divide dim {self.dim}")
        if self.repeats == "on" and self.mixer in BIDIRECTIONAL:
            raise UserError(f"option repeats: not used by {self.mixer}, which does not predict the next item")
        if self.embedding == "decoupled":
            if self.mixer not in MIXERS_THAT_DECOUPLE:
                raise UserError(
                    f"option embedding: decoupled is for {' and '.join(MIXERS_THAT_DECOUPLE)}, not for {self.mixer}"
                )
            if self.mixer == "hyena" and self.hyena.gate == "none":
                raise UserError("option embedding: decoupled makes gates, and hyena.gate none leaves them out")
        horizon = self.hyena.horizon or self.max_length
        if self.mixer == "hyena" and horizon * self.hyena.terms > BASIS_VALUES:
            raise UserError(
                f"option hyena.terms: {self.hyena.terms} terms of {horizon} taps are over {BASIS_VALUES} values; "
                "lower hyena.terms, hyena.horizon or max_length"
            )


@dataclass(frozen=True)
class TrainingConfig:
    """How to train."""

    epochs: int = 200
    """Most epochs to train."""
    batch_size: int = 128
    """Training slices per step: a slice is at most max_length events of one user."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or a half cosine down to zero at the last epoch."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises from zero."""
    weight_decay: float = 0.01
    """AdamW's weight decay of matrices; vectors are not decayed."""
    clip_norm: float = 5.0
    """Largest norm of the whole gradient; 0 switches clipping off."""
    loss: Literal["auto", "full", "sampled"] = "auto"
    """Cross entropy over the full catalogue, or sampled softmax with logQ correction; auto takes full up to 20,000
    items and sampled beyond."""
    negatives: int = 1024
    """Negatives per step of the sampled softmax, drawn by training frequency."""
    shard_items: bool = False
    """Divide the item table among the processes that torchrun starts, for tables that one of them cannot hold; only
    with the sampled softmax."""
    bf16: bool = False
    """Compute matrix products in bfloat16 (autocast)."""
    metric: Literal["NDCG@5", "NDCG@10", "NDCG@20", "Recall@5", "Recall@10", "Recall@20", "MRR"] = "NDCG@10"
    """Validation metric that chooses the best epoch."""
    patience: int = 10
    """Stop after this many evaluations without a better one."""
    evaluate_every: int = 1
    """Epochs between evaluations."""
    exclude_seen: bool = True
    """Evaluate recommending only items that the user has not seen."""
    seen: Literal["history", "input"] = "history"
    """What counts as seen in evaluation: the user's whole history, as in recommending, or only the input, the last
    max_length events of it, as in published results."""
    checkpoint_minutes: float = 5.0
    """Minutes after which to save within an epoch; it is always saved after every epoch."""
    seed: int = 0
    """Seed of weights, order, dropout and negatives."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train: auto takes a GPU where there is one."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_ranges(self, TRAINING_RANGES)

    def torch_device(self) -> torch.device:
        """The device that ``device`` selects on this machine. Raises :class:`UserError` where there is none."""
        import torch

        available = torch.cuda.is_available()
        if self.device == "cuda" and not available:
            raise UserError("option device: cuda was asked for, but torch sees no CUDA device")
        return torch.device("cuda" if available and self.device != "cpu" else "cpu")

    def for_items(self, n_items: int) -> TrainingConfig:
        """The same, with the ``loss`` that auto chooses for so many items."""
        if self.loss != "auto":
            return self
        return replace(self, loss="full" if n_items <= FULL_LOSS_ITEMS else "sampled")

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of 0-based ``step`` of ``steps``."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.schedule == "constant":
            return self.learning_rate * warm
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / steps))


def refuse_unused(model: ModelConfig, training: TrainingConfig, mixers: Sequence[str]) -> None:
    """Raises :class:`UserError` for an option that was changed although none of ``mixers``, nor anything else, reads
    it."""

    def refuse(prefix: str, config: Any, options: Sequence[str], why: str) -> None:
        for option in fields(config):
            if option.name in options and getattr(config, option.name) != option.default:
                raise UserError(f"option {prefix}{option.name}: not used {why}")

    hyena, named = model.hyena, ", ".join(mixers)
    bases = ("legendre", "chebyshev", "cosine")
    if "hyena" not in mixers:
        refuse("hyena.", hyena, HYENA_OPTIONS, f"by {named}; only by hyena")
    if hyena.order == 1:
        refuse("hyena.", hyena, HYENA_FILTER_OPTIONS, "by hyena.order 1, which has no long filter")
    if hyena.filter not in bases:
        refuse("hyena.", hyena, ("terms",), f"by filter {hyena.filter}; only by {', '.join(bases)}")
    if hyena.filter == "explicit":
        refuse("hyena.", hyena, ("window",), "by filter explicit; only by the others")
    if "attention" not in mixers:
        refuse("attention.", model.attention, ("cache", "cache_events"), f"by {named}; only by attention")
    if model.attention.cache == "full":
        refuse("attention.", model.attention, ("cache_events",), "by cache full; only by window and citrus")
    if set(mixers).isdisjoint(MIXERS_WITH_HEADS) and hyena.local is None:
        readers = f"{', '.join(MIXERS_WITH_HEADS)} and hyena with hyena.local"
        refuse("attention.", model.attention, ("heads",), f"by {named}; only by {readers}")
    if training.loss == "full":
        refuse("", training, ("negatives", "shard_items"), "by loss full; only by loss sampled")
    if model.embedding == "decoupled":
        refuse("", training, ("shard_items",), "with embedding decoupled, whose second table is not divided")
    if not training.exclude_seen:
        refuse("", training, ("seen",), "with --no-exclude-seen, which ranks seen items too")


def from_json(cls: type[T], data: object, name: str) -> T:
    """Make the dataclass ``cls`` from parsed JSON; messages call the data ``name``.

    Raises :class:`UserError` for anything but an object, and for an option that is unknown, missing, of another type or
    out of range.
    """
    if not isinstance(data, dict):
        raise UserError(f"{name}: expected options by name, got {shortened(data)}")
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for option, value in data.items():
        hint = hints.get(option)
        if hint is None:
            raise UserError(f"{name}: unknown option {shortened(option)}")
        if isinstance(hint, type) and is_dataclass(hint):
            values[option] = from_json(hint, value, f"{name}.{option}")
        elif _fits(value, hint):
            values[option] = value
        else:
            raise UserError(f"{name}: option {option} cannot be {shortened(value)}")
    try:
        return cls(**values)
    except TypeError as error:  # an option without a default is missing
        raise UserError(f"{name}: {error}") from None


def _fits(value: object, hint: Any) -> bool:
    """Whether a value from JSON is one of type ``hint``."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if origin is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    kind = NoneType if hint is None else origin or hint
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
