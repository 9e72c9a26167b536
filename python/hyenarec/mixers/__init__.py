"""Mixers: the one part in which the recommenders differ. ``MIXERS`` maps a name to its class."""

from hyenarec.mixers.attention import AttentionMixer
from hyenarec.mixers.base import Mixer, State
from hyenarec.mixers.bert4rec import Bert4RecMixer
from hyenarec.mixers.dman import DMANMixer
from hyenarec.mixers.elastic import ElasticMixer
from hyenarec.mixers.fuxi_linear import FuXiLinearMixer
from hyenarec.mixers.gems import GEMsMixer
from hyenarec.mixers.grela import GRELAMixer
from hyenarec.mixers.gru import GRUMixer
from hyenarec.mixers.hstu import HSTUMixer
from hyenarec.mixers.hydra import BidirectionalHydraMixer, HydraMixer
from hyenarec.mixers.hyena import HyenaRecMixer
from hyenarec.mixers.hytrec import HyTRecMixer
from hyenarec.mixers.ldm import LDMMixer
from hyenarec.mixers.linoss import LinOSSMixer
from hyenarec.mixers.lru import LRUMixer
from hyenarec.mixers.sparsek import SparseKMixer

MIXERS: dict[str, type[Mixer]] = {
    "hyena": HyenaRecMixer,
    "attention": AttentionMixer,
    "bert4rec": Bert4RecMixer,
    "gru": GRUMixer,
    "lru": LRUMixer,
    "linoss": LinOSSMixer,
    "hydra": HydraMixer,
    "hydra_bidirectional": BidirectionalHydraMixer,
    "hytrec": HyTRecMixer,
    "fuxi_linear": FuXiLinearMixer,
    "grela": GRELAMixer,
    "elastic": ElasticMixer,
    "hstu": HSTUMixer,
    "dman": DMANMixer,
    "sparsek": SparseKMixer,
    "gems": GEMsMixer,
    "ldm": LDMMixer,
}

__all__ = ["MIXERS", "Mixer", "State"]
