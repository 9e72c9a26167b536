"""Matrices in 8 bits: integers from -127 to 127 and a factor for each row."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from hyenarec.model import Block, SequenceModel
from hyenarec_kernels.nn import HyenaMixer


class Rounded(nn.Module):
    """A matrix (N, D) in 8 bits; :attr:`weight` has it in float32."""

    values: Tensor
    factors: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        factors = weight.detach().abs().amax(1, keepdim=True).clamp(min=1e-30) / 127  # (N, 1)
        self.register_buffer("values", (weight.detach() / factors).round().to(torch.int8))
        self.register_buffer("factors", factors)

    @property
    def weight(self) -> Tensor:
        return self.values.float() * self.factors


class RoundedEmbedding(Rounded):
    def forward(self, items: Tensor) -> Tensor:
        return embedding(items, self.values.float()) * embedding(items, self.factors)


class RoundedLinear(Rounded):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.weight)
        self.bias, self.in_features, self.out_features = layer.bias, layer.in_features, layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def round_weights(model: SequenceModel) -> SequenceModel:
    """Rounds embeddings and linear layers of ``model``, an inference copy, to 8 bits in place; returns ``model``."""
    for module in list(model.modules()):
        if isinstance(module, HyenaMixer | Block):
            module.frozen = None  # use the stored matrices again, which are what is rounded
        for name, layer in list(module.named_children()):
            if type(layer) is nn.Linear:
                setattr(module, name, RoundedLinear(layer))
            elif type(layer) is nn.Embedding:
                setattr(module, name, RoundedEmbedding(layer.weight))
    return model
