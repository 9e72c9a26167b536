"""A Hyena mixer whose gates are computed from input channels of their own."""

from __future__ import annotations

import pytest
import torch

from hyenarec_kernels.nn import HyenaMixer
from hyenarec_kernels.nn.projections import SCALE


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_gates_are_made_of_the_channels_behind_the_values(order: int) -> None:
    """The mixer equals the equations in its docstring, computed tap by tap."""
    torch.manual_seed(0)
    mixer = HyenaMixer(4, 6, order=order, gate_dim=3, gate="sigmoid").double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    x = torch.randn(2, 9, 7).double()
    values, small = x.split((4, 3), -1)
    assert mixer.gate_proj is not None
    made = SCALE * small @ mixer.gate_proj.weight.T
    projected = torch.cat((made, values + SCALE * values @ mixer.in_proj.weight.T), -1)

    def convolve(u: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:  # (B, L, C) and taps (C, W)
        rows = [sum(taps[:, lag] * u[:, t - lag] for lag in range(min(taps.shape[1], t + 1))) for t in range(9)]
        return torch.stack(rows, 1)  # type: ignore[arg-type]

    *q, v = (convolve(projected, mixer.short_taps()) + mixer.short_offset()).chunk(order + 1, -1)
    for i, taps in enumerate(mixer.filters):
        u = q[i] * v
        v = convolve(u, taps()) + mixer.skip[i] * u
    v = q[-1].sigmoid() * v
    want = v + SCALE * v @ mixer.out_proj.weight.T
    torch.testing.assert_close(mixer(x), want, rtol=1e-7, atol=1e-9)


def test_gates_of_their_own_channels_stream() -> None:
    torch.manual_seed(0)
    mixer, x = HyenaMixer(4, 6, gate_dim=3).double(), torch.randn(2, 9, 7).double()
    want = mixer(x)
    with torch.inference_mode():
        _, state = mixer.prefill(x[:, :5])
        for t in range(5, 9):
            y, state = mixer.step(x[:, t], state)
            torch.testing.assert_close(y, want[:, t])
    with pytest.raises(ValueError, match=r"x must be \(2, 7\) beside this state, got \(2, 4\)"):
        mixer.step(x[:, 0, :4], state)


def test_without_them_a_mixer_stores_what_it_did() -> None:
    assert not any("gate_proj" in name for name in HyenaMixer(4, 6).state_dict())
    with pytest.raises(ValueError, match="gate_dim must be 0 without gates, got 3"):
        HyenaMixer(4, 6, gate="none", gate_dim=3)
    with pytest.raises(ValueError, match=r"x must be \(B, L, 7\) or \(T, 7\), got \(2, 9, 4\)"):
        HyenaMixer(4, 6, gate_dim=3)(torch.randn(2, 9, 4))


def test_padding_and_packing_change_nothing() -> None:
    torch.manual_seed(0)
    mixer, x = HyenaMixer(4, 6, gate_dim=3).double(), torch.randn(2, 9, 7).double()
    lengths = torch.tensor([9, 4])
    want = [mixer(row[None, :length])[0] for row, length in zip(x, lengths.tolist(), strict=True)]
    spoilt = x.masked_fill((torch.arange(9) >= lengths[:, None])[..., None], torch.nan)
    padded = mixer(spoilt, lengths=lengths)
    packed = mixer(torch.cat([x[0], x[1, :4]]), cu_seqlens=torch.tensor([0, 9, 13]))
    torch.testing.assert_close(packed, torch.cat(want))
    torch.testing.assert_close(padded[0], want[0])
    torch.testing.assert_close(padded[1], torch.cat((want[1], torch.zeros(5, 4).double())))
    last = mixer(spoilt, lengths=lengths, last_only=True)
    torch.testing.assert_close(last, torch.stack([row[-1] for row in want]))
