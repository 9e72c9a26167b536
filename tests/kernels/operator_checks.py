"""Checks of the operators' contracts as functions, so that tests can also see each of them fail on broken code."""

from __future__ import annotations

import torch
from operator_cases import TOLERANCE, Case, assert_close
from torch import Tensor

import hyenarec_kernels as hk
from hyenarec_kernels import backends
from hyenarec_kernels.nn import HyenaMixer
from hyenarec_kernels.ops.conv_step import conv_step


def check_causality(operator: str, taps: int, tolerance: float) -> None:
    """Rows after a position change no output at or before it; with ``tolerance`` 0, bit for bit."""
    case = Case.random(operator, [23, 23], taps=taps)
    outputs, _ = case.run("packed")
    for cut in (0, 1, 11, 21):
        changed = Case.random(operator, [23, 23], taps=taps)
        for name in changed.rows.keys() - {"grad"}:
            for rows in changed.rows[name]:
                rows[cut + 1 :] *= -3
        again, _ = changed.run("packed")
        for before, after in zip(outputs, again, strict=True):
            assert abs(before - after)[: cut + 1].max() <= tolerance
            assert abs(before - after)[cut + 1 :].max() > 0.1


def check_padding(operator: str, layout: str, **options: int) -> None:
    """A layout gives the oracle's values and gradients at real positions, whatever the padding holds."""
    case = Case.random(operator, **options)
    for fill in (float("nan"), 1e30):
        assert_close(case.run(layout, fill=fill), case.expected(), TOLERANCE[torch.float64])


def check_gradients(operator: str, taps: int, lengths: tuple[int, ...] = (17, 17)) -> None:
    """The outputs and every gradient, for a random output gradient, equal the oracle's."""
    case = Case.random(operator, lengths, taps=taps)
    assert_close(case.run("full"), case.expected(), TOLERANCE[torch.float64])


def check_step(dim: int, taps: int, batch: int, dtype: torch.dtype, *, gated: bool = True, device: str = "cpu") -> None:
    """Repeated ``conv_step`` gives ``long_conv`` at every position, with sequences at different places in their
    rings."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    length = 2 * taps + 3
    x, pre, post = torch.randn(batch, length, 3 * dim, dtype=torch.float64).to(device, dtype).split(dim, -1)
    gates = {"pre_gate": pre, "post_gate": post} if gated else {}
    filter = torch.randn(dim, taps, dtype=wide, device=device)
    with backends.use("reference"):
        want = hk.long_conv(x.double(), filter.double(), **{name: gate.double() for name, gate in gates.items()})
    history = torch.full((batch, 2, taps - 1, dim), torch.nan, dtype=wide, device=device)[:, 1].zero_()  # strided
    steps = torch.arange(batch, device=device) * 5
    for t in range(length):
        now = {name: gate[:, t] for name, gate in gates.items()}
        got = conv_step(x[:, t], history, filter.flip(1).T.contiguous(), steps + t, **now)
        assert got.dtype == dtype
        error = (got.double() - want[:, t]).norm() / want[:, t].norm()
        assert error <= TOLERANCE[dtype], f"worst at position {t}: {error:.1e}"


def check_streaming(mixer: HyenaMixer, x: Tensor, prompt: int, tolerance: float) -> None:
    """``prefill`` of a prompt of ``x`` (B, L, D) and a ``step`` for each later event give the forward pass
    everywhere."""
    with torch.no_grad():
        want = mixer(x)
        y, state = mixer.prefill(x[:, :prompt])
        outputs = [y]
        for t in range(prompt, x.shape[1]):
            out, state = mixer.step(x[:, t], state)
            outputs.append(out[:, None])
        got = torch.cat(outputs, 1)
    distance = (got - want).double().norm(dim=(0, 2)) / want.double().norm(dim=(0, 2))
    assert distance.max() <= tolerance, f"worst at position {int(distance.argmax())}: {distance.max():.1e}"
