"""The hyena mixer made of operators that every runtime has, for sequences that fill right-padded rectangles."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, linear, pad

from hyenarec.mixers.hyena import HyenaRecMixer
from hyenarec.model import SequenceModel
from hyenarec_kernels.gates import GATES
from hyenarec_kernels.nn import HyenaMixer


class StandardHyena(nn.Module):
    """:class:`hyenarec_kernels.nn.HyenaMixer` by matrix products and ONNX's ``Conv``, for up to ``length`` events.

    Its weights are what the mixer computes from its parameters. It is causal, so right-padding needs no mask.
    """

    w_in: Tensor
    w_out: Tensor
    short_taps: Tensor
    short_bias: Tensor
    taps: Tensor

    def __init__(self, mixer: HyenaMixer, length: int) -> None:
        super().__init__()
        self.dim, self.order, self.num_gates = mixer.dim, mixer.order, mixer.num_gates
        self.activation = GATES.get(mixer.gate)
        self.horizon = min(mixer.horizon, length)
        with torch.no_grad():
            self.register_buffer("w_in", mixer.project_in(torch.eye(mixer.width)).T.contiguous())
            self.register_buffer("w_out", mixer.project_out(torch.eye(mixer.dim)).T.contiguous())
            self.register_buffer("short_taps", mixer.short_taps().flip(1)[:, None].contiguous())  # (C, 1, W)
            self.register_buffer("short_bias", mixer.short_offset())
            taps = [self._taps(mixer, i) for i in range(mixer.order - 1)]
            none = self.w_out.new_zeros(0, mixer.dim, 1, 1)
            self.register_buffer("taps", torch.stack(taps) if taps else none)  # (order - 1, D, 1, K)

    def _taps(self, mixer: HyenaMixer, number: int) -> Tensor:
        filter = mixer.filters[number]
        taps = filter()[:, : self.horizon].repeat_interleave(mixer.dim // filter.groups, 0).clone()
        assert mixer.skip is not None
        taps[:, 0] += mixer.skip[number]
        largest_first: Tensor = taps.flip(1)[:, None]
        return largest_first

    def forward(self, x: Tensor, *, lengths: Tensor, last_only: bool = False) -> Tensor:
        z = _causal(linear(x, self.w_in).mT, self.short_taps) + self.short_bias[:, None]  # (B, C, L)
        *q, v = z.chunk(self.num_gates + 1, 1)
        gate = self.activation(q[-1]) if self.activation and q else None
        for i in range(self.order - 1):
            v = _causal(q[i] * v if q else v, self.taps[i])
        y = (v if gate is None else gate * v).mT
        if last_only:
            y = y[torch.arange(lengths.shape[0], device=x.device), lengths - 1]
        return linear(y, self.w_out)


def _causal(x: Tensor, taps: Tensor) -> Tensor:
    """``x`` (B, C, L) convolved with one filter per channel, ``taps`` (C, 1, K), the largest lag first."""
    return conv1d(pad(x, (taps.shape[-1] - 1, 0)), taps, groups=len(taps))


def use_standard(model: SequenceModel, length: int) -> SequenceModel:
    """``model`` itself, changed to standard operators alone, for histories of up to ``length`` events."""
    for block in model.blocks:
        if isinstance(block.mixer, HyenaRecMixer):
            setattr(block.mixer, "operator", StandardHyena(block.mixer.operator, length))  # noqa: B010 (of another class)
    return model
