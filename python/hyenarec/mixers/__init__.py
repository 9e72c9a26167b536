"""Mixers: the one part in which the recommenders differ. ``MIXERS`` maps a name to its class."""

from hyenarec.mixers.attention import AttentionMixer
from hyenarec.mixers.base import Mixer
from hyenarec.mixers.gru import GRUMixer
from hyenarec.mixers.hyena import HyenaMixer

MIXERS: dict[str, type[Mixer]] = {"hyena": HyenaMixer, "attention": AttentionMixer, "gru": GRUMixer}

__all__ = ["MIXERS", "Mixer"]
