"""What the Triton kernels need beside their outputs: a large batch goes in runs that share it."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from operator_cases import TOLERANCE, Case, assert_close
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hyenarec_kernels import backends
from hyenarec_kernels import triton as package

pytest.importorskip("triton", reason="triton is not installed")

from hyenarec_kernels.triton import legendre_conv as block
from hyenarec_kernels.triton import operators
from hyenarec_kernels.triton.ahead_of_time import launches
from hyenarec_kernels.triton.rows import Rows

pytestmark = pytest.mark.skipif(not package.INTERPRETED, reason="these run in the interpreter, on CPU tensors")


@pytest.mark.parametrize("layout", ["left", "full"])
def test_sequences_in_several_runs(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a large batch is cut into, from a small one: runs of several sequences and a shorter one at the end."""
    lengths = (70,) * 6 if layout == "full" else (70, 0, 1, 66, 40, 7)
    case = Case.random("legendre_conv", lengths, dim=3, taps=66)
    runs = []
    part = Rows.part
    monkeypatch.setattr(Rows, "part", lambda self, p: runs.append(part(self, p)) or runs[-1])
    monkeypatch.setattr(block, "RUN", 420)
    with backends.use("triton"):
        assert_close(case.run(layout), case.expected(), TOLERANCE[torch.float64])
    counts = [run.batch for run in runs]
    assert len(counts) > 2 and sum(counts) == 12  # six forward, six backward
    assert max(counts) > 1


class Allocated(TorchDispatchMode):
    """The most bytes allocated at a time by operations inside, launches left out."""

    def __init__(self, launches: list[Any]) -> None:
        super().__init__()
        self.launches, self.now, self.peak = launches, 0, 0
        self.live: dict[int, list[int]] = {}  # tensors and bytes of each storage

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.launches.clear()  # these would keep what they were given
        for given in args:
            if isinstance(given, Tensor) and given.untyped_storage().data_ptr() not in self.live:
                self.hold(given, 0)
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple | list) else [out]:
            if isinstance(made, Tensor) and made.numel():
                self.hold(made, made.untyped_storage().nbytes())
        return out

    def hold(self, tensor: Tensor, size: int) -> None:
        at = tensor.untyped_storage().data_ptr()
        if at not in self.live:
            self.live[at] = [0, size]
            self.now += size
            self.peak = max(self.peak, self.now)
        self.live[at][0] += 1
        weakref.finalize(tensor, self.release, at)

    def release(self, at: int) -> None:
        self.live[at][0] -= 1
        if not self.live[at][0]:
            self.now -= self.live.pop(at)[1]


@pytest.mark.parametrize(
    ("tokens", "length", "dim", "training"),
    [(1 << 20, 200, 128, False), (1 << 20, 4096, 256, False), (1 << 20, 16384, 64, True), (1 << 17, 512, 128, True)],
)
def test_scratch_stays_bounded(tokens: int, length: int, dim: int, training: bool) -> None:
    """What a call allocates beside its outputs, at shapes of the GPU suite, by running all of it but the kernels."""
    x, pre, post, grad = (torch.empty(tokens // length, length, dim, dtype=torch.float16) for _ in range(4))
    call = (x, torch.zeros(dim, 32), None, torch.zeros(dim), pre, post, None, None, length, False)

    def run() -> tuple[Tensor, ...]:
        return operators.legendre_conv_backward(grad, *call, [True] * 6) if training else operators.legendre_conv(*call)

    with launches(90) as found, Allocated(found) as allocated:
        out = run()
        found.clear()
    outputs = sum(t.nbytes for t in (out if training else [out]))
    allowed = max(0.15 * outputs, 8 * block.RUN)  # bytes an element of a run
    assert 0.25 * allowed < allocated.peak - outputs < allowed
