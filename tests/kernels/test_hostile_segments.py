"""Operators called directly, as compiled and exported programs call them: whatever starts and ends hold, nothing
outside a sequence is read. The CPU refuses wrong ones; the Triton kernels clamp them, as on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hyenarec_kernels.backends import BACKENDS
from hyenarec_kernels.backends.reference import rows as reference_rows
from hyenarec_kernels.segments import Segments, _clamped

ROWS, FAR = 20, 1 << 62
LEAST = -(1 << 63)
PADDED = {
    "past the end": ([0, 0, 0], [20, 21, 5]),
    "far past the end": ([0, 0, 0], [20, FAR, 5]),
    "negative": ([0, -1, 0], [20, 5, 5]),
    "far negative": ([0, LEAST, 0], [20, 5, 5]),
    "negative end": (None, [20, -3, 5]),
    "both far": ([0, LEAST, 0], [20, (1 << 63) - 1, 5]),
    "reversed": ([0, 9, 0], [20, 4, 5]),
    "beyond": ([0, FAR, 0], [20, FAR + 3, 5]),
}
PACKED = {
    "past the end": ([0, 30, 40], [30, 40, 61]),
    "far past the end": ([0, 30, FAR], [30, FAR, 60]),
    "negative": ([-4, 30, 40], [30, 40, 60]),
    "decreasing": ([0, 30, 20], [30, 20, 60]),
    "overlapping": ([0, 10, 5], [30, 50, 60]),
    "gaps": ([0, 12, 50], [10, 40, 60]),
    "short": ([0, 10, 20], [10, 20, 30]),
    "far negative": ([0, LEAST, 40], [LEAST, 40, 60]),
}
CASES = [("padded", name) for name in PADDED] + [("packed", name) for name in PACKED]
CALLS = {
    "short_conv": (lambda d: [torch.randn(d, 3), None], [""]),
    "gated_short_conv": (lambda d: [torch.randn(d, 3), None], [2]),
    "long_conv": (lambda d: [torch.randn(d, 9), None, None, None], [False]),
    "long_conv, last": (lambda d: [torch.randn(d, 9), None, None, None], [True]),
    "legendre_conv": (lambda d: [torch.randn(d, 3), None, None, None, None], [40, False]),
}


def call(operator: str, x: Tensor, where: tuple[Any, Any]) -> tuple[Tensor, ...]:
    parameters, options = CALLS[operator]
    torch.manual_seed(1)
    run = getattr(torch.ops.hyenarec, operator.partition(",")[0])
    out = run(x, *parameters(x.shape[-1]), *(None if w is None else w for w in where), *options)
    return out if isinstance(out, tuple) else (out,)


def guarded(packed: bool) -> Tensor:
    """Input that has NaN before and after it in memory, where an index out of range would read."""
    around = torch.full((5, ROWS, 4), torch.nan)
    around[1:4] = torch.randn(3, ROWS, 4)
    return around[1:4].reshape(-1, 4) if packed else around[1:4]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("operator", CALLS)
@pytest.mark.parametrize(("layout", "name"), CASES)
def test_no_index_leaves_its_sequence(layout: str, name: str, operator: str, dtype: torch.dtype, backend: str) -> None:
    packed = layout == "packed"
    starts, ends = (PACKED if packed else PADDED)[name]
    if dtype == torch.int32 and any(abs(n) >= 1 << 31 for n in (*(starts or []), *ends)):
        pytest.skip("no int32")
    where = tuple(None if w is None else torch.tensor(w, dtype=dtype) for w in (starts, ends))
    x = guarded(packed)
    if backend != "triton":
        with pytest.raises((ValueError, RuntimeError), match=r"^\w+: .*(runs|run|decrease|follow)|sequence") as failure:
            call(operator, x, where)
        assert "\n" not in str(failure.value).strip()
        return
    want = call(operator, x, _clamped(where[0], where[1], x.shape[-2], packed))
    for got, right in zip(call(operator, x, where), want, strict=True):
        assert got.isfinite().all()
        torch.testing.assert_close(got, right, rtol=0, atol=0)


@pytest.mark.parametrize("operator", CALLS)
@pytest.mark.parametrize(
    ("x", "where"),
    [
        (torch.randn(3, ROWS, 4), (torch.zeros(2).long(), torch.zeros(2).long())),
        (torch.randn(3, ROWS, 4), (None, torch.zeros(3))),
        (torch.randn(3, ROWS, 4), (torch.zeros(3).long(), None)),
        (torch.randn(3, ROWS, 4), (None, torch.zeros(3, 1).long())),
        (torch.randn(9, 4), (None, None)),
        (torch.randn(9, 4), (torch.zeros(2).long(), torch.tensor([9]))),
        (torch.randn(9, 4), (torch.zeros(0).long(), torch.zeros(0).long())),
    ],
)
def test_indices_of_another_number_or_type_are_refused(
    operator: str, x: Tensor, where: tuple[Any, Any], backend: str
) -> None:
    with pytest.raises(ValueError, match=f"^{operator.partition(',')[0]}: .*(starts|ends|cu_seqlens)"):
        call(operator, x, where)


@pytest.mark.parametrize(("layout", "name"), CASES)
def test_the_reference_clamps_where_it_cannot_look(layout: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, which the reference does not wait for, it clamps indices that it cannot inspect. The test pretends that
    they are on one."""
    monkeypatch.setattr("hyenarec_kernels.segments.concrete", lambda t: None)
    packed = layout == "packed"
    where = tuple(None if w is None else torch.tensor(w) for w in (PACKED if packed else PADDED)[name])
    x = guarded(packed)
    found = reference_rows.Rows.of(x, *where)
    clamped = Segments(*_clamped(where[0], where[1], x.shape[-2], packed))
    right = reference_rows.Rows.of(x, *clamped)
    assert torch.equal(found.first, right.first) and torch.equal(found.length, right.length)
    assert (found.length >= 0).all() and (found.first + found.length <= 3 * ROWS).all()


@pytest.mark.parametrize("steps", [-1, -7, LEAST, (1 << 63) - 1])
def test_a_ring_is_written_inside_whatever_steps_say(steps: int, backend: str) -> None:
    history = torch.zeros(4, 5, 6)
    with torch.no_grad():
        torch.ops.hyenarec.conv_step(
            torch.ones(1, 6), history[1:2], torch.ones(6, 6), torch.tensor([steps]), None, None
        )
    assert torch.equal(history.sum((1, 2)), torch.tensor([0.0, 6.0, 0.0, 0.0]))
    assert history[1, steps % 5].sum() == 6


def test_borders_of_many_sequences() -> None:
    """Borders are right with more sequences than the kernel takes in one step, and with some ends that decrease."""
    if BACKENDS["triton"].probe() is not None or "cpu" not in BACKENDS["triton"].devices:
        pytest.skip("the triton backend does not run on the CPU")
    from hyenarec_kernels.backends.triton.rows import _borders

    ends = torch.randint(0, 9000, (2600,)).sort()[0]
    ends[-1] = 9000
    right = torch.cat([torch.zeros(1).long(), ends])
    assert torch.equal(_borders(ends, 9000), right) and torch.equal(_borders(ends.int(), 9000), right)
    ends[[7, 1023, 1024, 2000]] = torch.tensor([-5, 1 << 40, 3, 0])
    starts = torch.cat([torch.zeros(1).long(), ends[:-1]])
    first, last = _clamped(starts, ends, 9000, True)
    borders = _borders(ends, 9000)
    assert torch.equal(borders[:-1], first) and torch.equal(borders[1:], last)
