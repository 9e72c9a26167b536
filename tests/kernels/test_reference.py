"""The reference's two forms of the convolution, direct and FFT, each for all kinds of calls."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from operator_cases import TOLERANCE, Case, assert_close
from operator_checks import check_padding
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hyenarec_kernels import backends
from hyenarec_kernels.backends import crossovers, reference
from hyenarec_kernels.backends.reference import direct, fourier

long_conv_module = import_module("hyenarec_kernels.backends.reference.long_conv")


@pytest.mark.parametrize("form", [direct, fourier])
@pytest.mark.parametrize("taps", [1, 2, 6, 7, 40])
@pytest.mark.parametrize("layout", ["left", "packed"])
def test_both_forms_serve_any_number_of_taps(
    form: object, taps: int, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_conv_module, "form", lambda count: form)
    with backends.use("reference"):
        check_padding("long_conv", layout, taps=taps)


def test_few_taps_go_direct() -> None:
    assert long_conv_module.form(1) is direct
    assert long_conv_module.form(crossovers.REFERENCE_DIRECT) is direct
    assert long_conv_module.form(crossovers.REFERENCE_DIRECT + 1) is fourier


@pytest.mark.parametrize("layout", ["right", "packed"])
def test_blocks_join_again_in_order(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences that are sorted by length into many blocks come back to their own places."""
    monkeypatch.setattr(fourier, "BLOCK_VALUES", 500)
    lengths = (3, 17, 0, 9, 17, 1, 30, 2, 9)
    case = Case.random("long_conv", lengths, taps=12)
    with backends.use("reference"):
        assert_close(case.run(layout), case.expected(), TOLERANCE[torch.float64])


def test_fft_size_is_the_next_5_smooth_number() -> None:
    smooth = sorted(2**a * 3**b * 5**c for a in range(12) for b in range(8) for c in range(6))
    for least in [*range(1, 300), 1999, 4097]:
        assert fourier.fft_size(least) == next(size for size in smooth if size >= least)


@pytest.mark.parametrize("packed", [False, True])
def test_contract_5_cost_of_the_last_position(packed: bool) -> None:
    """No floating-point array of a ``last_only`` call grows with the sequence: the cost is O(K D) per sequence."""

    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.is_floating_point() and not func.is_view:
                self.seen = max(self.seen, out.numel())
            return out

    sequences, length, dim, taps = 2, 5000, 3, 16
    x = torch.randn(sequences, length, dim)
    gate, last_gate, filter, skip = torch.randn_like(x), torch.randn(2, dim), torch.randn(dim, taps), torch.randn(dim)
    starts = ends = None
    if packed:
        x, gate = x.flatten(0, 1), gate.flatten(0, 1)
        cu = torch.tensor([0, length, 2 * length])
        starts, ends = cu[:-1], cu[1:]
    with Largest() as largest:
        reference.long_conv(x, filter, skip, gate, last_gate, starts, ends, True)
    assert largest.seen == sequences * taps * dim
