"""The memory that the Triton kernels need beside their outputs: a large batch is cut into runs that share it."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from operator_cases import TOLERANCE, Case, assert_close
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hyenarec_kernels import backends

pytest.importorskip("triton", reason="triton is not installed")

from benchmarks.gpu.ahead_of_time import launches
from hyenarec_kernels.backends.triton import legendre_conv as block
from hyenarec_kernels.backends.triton import operators

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="these run in the interpreter, where there is no GPU")


@pytest.mark.parametrize(
    ("layout", "lengths", "dim", "run", "sequences", "channels"),
    [
        ("left", (70, 0, 1, 66, 40, 7), 3, 420, [2, 2, 2], [3]),
        ("full", (70,) * 5, 3, 350, [2, 2, 1], [3]),
        ("packed", (70, 0, 1, 66), 24, 1, [4], [16, 8]),
        ("middle", (70, 0), 40, 1, [1, 1], [16, 16, 8]),
    ],
)
def test_several_runs(
    layout: str,
    lengths: tuple[int, ...],
    dim: int,
    run: int,
    sequences: list[int],
    channels: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A batch is cut into runs of some sequences and some channels, the last of which are smaller. The test lowers the
    limits, so that a small batch is cut."""
    case = Case.random("legendre_conv", lengths, dim=dim, groups=1, taps=66)
    runs: dict[str, list[tuple[int, int]]] = {"_forward": [], "_backward": []}
    for name, noted in runs.items():
        right = getattr(block.BlockLowRank, name)

        def note(self: Any, u: Any, *rest: Any, noted: Any = noted, right: Any = right) -> Any:
            noted.append((self.rows.batch, u[0].shape[-1]))
            return right(self, u, *rest)

        monkeypatch.setattr(block.BlockLowRank, name, note)
    monkeypatch.setattr(block, "RUN", run)
    monkeypatch.setattr(block, "SLICE", 16)
    with backends.use("triton"):
        assert_close(case.run(layout), case.expected(), TOLERANCE[torch.float64])
    assert runs["_forward"] == [(n, width) for width in channels for n in sequences]
    assert len(runs["_backward"]) > 1  # fewer runs, since gradients are more outputs, which allow more scratch memory
    assert sum(n * width for n, width in runs["_backward"]) == sum(sequences) * sum(channels)


class Allocated(TorchDispatchMode):
    """Records the most bytes that operations inside hold at one time, without counting launches."""

    def __init__(self, launches: list[Any]) -> None:
        super().__init__()
        self.launches, self.now, self.peak = launches, 0, 0
        self.live: dict[int, list[int]] = {}  # for each storage: its tensors and bytes

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.launches.clear()  # launches would keep their arguments alive
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
    ("tokens", "length", "dim", "training", "packed"),
    [
        (1 << 20, 200, 128, False, False),
        (1 << 20, 4096, 256, False, False),
        (1 << 20, 16384, 64, True, False),
        (1 << 17, 512, 128, True, False),
        (1 << 20, 1 << 20, 256, False, False),
        (1 << 20, 4096, 256, True, True),
    ],
)
def test_scratch_stays_bounded(tokens: int, length: int, dim: int, training: bool, packed: bool) -> None:
    """A call's memory beside its outputs is bounded at shapes of the GPU suite. Everything but the kernels runs."""
    shape = (tokens, dim) if packed else (tokens // length, length, dim)
    x, pre, post, grad = (torch.empty(shape, dtype=torch.float16) for _ in range(4))
    bounds = torch.arange(0, tokens + 1, length)
    where = (bounds[:-1], bounds[1:]) if packed else (None, None)
    call = (x, torch.zeros(dim, 32), None, torch.zeros(dim), pre, post, *where, min(length, 65_536), False)

    def run() -> tuple[Tensor, ...]:
        return operators.legendre_conv_backward(grad, *call, [True] * 6) if training else operators.legendre_conv(*call)

    with launches() as found, Allocated(found) as allocated:
        out = run()
        found.clear()
    outputs = sum(t.nbytes for t in (out if training else [out]))
    allowed = max(0.15 * outputs, 8 * block.RUN)  # 8 bytes for each element of a run
    assert 0.25 * allowed < allocated.peak - outputs < allowed
