"""A CUDA graph can capture a whole training step and a serving step: on meta tensors, neither reads from the device.

tests/benchmarks/test_host.py counts what the operators do inside.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hyenarec_kernels.nn import HyenaMixer
from tests.capture import Recorder, keep_bases

DIM, HORIZON = 16, 40


@pytest.mark.parametrize("layout", ["padded", "lengths", "packed"])
@pytest.mark.parametrize(("order", "gate"), [(1, "identity"), (2, "identity"), (3, "silu")])
def test_training_step(layout: str, order: int, gate: Any) -> None:
    with torch.device("meta"):
        mixer = HyenaMixer(DIM, HORIZON, order=order, gate=gate)
        optimizer = torch.optim.SGD(mixer.parameters(), lr=0.1, momentum=0.9)
        where: dict[str, Any] = {}
        if layout == "packed":
            where = {"cu_seqlens": torch.empty(4, dtype=torch.int32)}
        elif layout == "lengths":
            where = {name: torch.empty(3, dtype=torch.int64) for name in ("lengths", "starts")}
        x = torch.empty((60, DIM) if layout == "packed" else (3, 20, DIM), requires_grad=True)
    with Recorder() as recorder:
        optimizer.zero_grad()
        mixer(x, **where).square().mean().backward()
        optimizer.step()
    ours = {name.split(".")[1] for name in recorder.names if name.startswith("hyenarec.")}
    short = "short_conv" if order == 1 else "gated_short_conv"
    expected = {short, f"{short}_backward"} | ({"legendre_conv", "legendre_conv_backward"} if order > 1 else set())
    assert ours - {"segments"} == expected


@pytest.mark.parametrize("order", [1, 2, 3])
def test_serving_step(order: int) -> None:
    """Steps from a state, and a ``last_only`` call, read nothing from the device."""
    with torch.device("meta"):
        mixer = HyenaMixer(DIM, HORIZON, order=order)
        history, x, packed = torch.empty(3, 20, DIM), torch.empty(3, DIM), torch.empty(60, DIM)
        cu_seqlens = torch.empty(4, dtype=torch.int32)
    with torch.no_grad():
        _, state = mixer.prefill(history)
    with Recorder() as recorder, torch.no_grad():
        for _ in range(2):
            out, state = mixer.step(x, state)
        last = mixer(packed, cu_seqlens=cu_seqlens, last_only=True)
    assert out.shape == last.shape == (3, DIM) and recorder.names.count("hyenarec.conv_step.default") == 2 * order


@pytest.mark.parametrize("layout", ["padded", "lengths", "packed"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_prefill(layout: str, order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_bases(monkeypatch)
    with torch.device("meta"):
        mixer = HyenaMixer(DIM, HORIZON, order=order)
        x = torch.empty((60, DIM) if layout == "packed" else (3, 20, DIM))
        where: dict[str, Any] = {"cu_seqlens": torch.empty(4, dtype=torch.int32)} if layout == "packed" else {}
        if layout == "lengths":
            where = {"lengths": torch.empty(3, dtype=torch.int64)}
    with Recorder() as recorder, torch.no_grad():
        y, state = mixer.prefill(x, **where)
        after, state = mixer.step(x.reshape(3, 20, DIM)[:, 0], state)
    assert y.shape == x.shape and after.shape == (3, DIM)
    assert recorder.names.count("hyenarec.legendre_conv.default") == order - 1


def test_what_waits_for_the_device_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = HyenaMixer.forward
    monkeypatch.setattr(HyenaMixer, "forward", lambda self, x, **where: forward(self, x * x.sum().item(), **where))
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        test_training_step("padded", 2, "identity")
    monkeypatch.setattr(HyenaMixer, "forward", lambda self, x, **where: forward(self, x[x[..., 0] > 0], **where))
    with pytest.raises((RuntimeError, NotImplementedError), match=r"nonzero|meta"):
        test_training_step("padded", 2, "identity")
