"""Contract 9: a wrong argument is refused in one line that names the operator and the argument, and says what was given
and what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import hyenarec_kernels as hk
from hyenarec_kernels.ops.dropout import dropout
from hyenarec_kernels.segments import Segments

X = torch.randn(2, 6, 4)
PACKED = torch.randn(12, 4)
TAPS = torch.randn(2, 5)
index = torch.tensor


def long(x: torch.Tensor = X, filter: torch.Tensor = TAPS, skip: Any = None, **options: Any) -> torch.Tensor:
    return hk.long_conv(x, filter, skip, **options)


LAYOUT_ERRORS = [
    ({"starts": index([0, 1])}, X, "starts was given without lengths"),
    ({"lengths": index([1, 2, 3])}, X, r"lengths must have one entry a row of x, \(2,\), got \(3,\)"),
    ({"lengths": index([1, 2]), "starts": index([1])}, X, r"starts must have one entry a row of x, \(2,\), got \(1,\)"),
    ({"lengths": index([1.0, 2.0])}, X, "lengths must be a 1-D int32 or int64 tensor, got .* torch.float32"),
    ({"lengths": index([[1], [2]])}, X, r"lengths must be a 1-D int32 or int64 tensor, got \(2, 1\)"),
    ({"lengths": index([1, 7])}, X, "row 1 runs from 0 to 7 .* within its 6 positions"),
    ({"lengths": index([1, -1])}, X, "row 1 runs from 0 to -1"),
    ({"lengths": index([3, 3]), "starts": index([4, 0])}, X, "row 0 runs from 4 to 7"),
    ({"lengths": index([3, 3]), "starts": index([0, -1])}, X, "row 1 runs from -1 to 2"),
    ({"cu_seqlens": index([0, 6])}, X, r"padded x \(B, L, D\) takes lengths and starts, not cu_seqlens"),
    ({}, PACKED, r"packed x \(T, D\) needs cu_seqlens"),
    ({"cu_seqlens": index([0, 12]), "lengths": index([12])}, PACKED, "takes neither lengths nor starts"),
    ({"cu_seqlens": index([0.0, 12.0])}, PACKED, "cu_seqlens must be a 1-D int32 or int64"),
    ({"cu_seqlens": index([], dtype=torch.int64)}, PACKED, "one entry more than there are sequences"),
    ({"cu_seqlens": index([0, 11])}, PACKED, "must run from 0 to the 12 rows of x, got 0 to 11"),
    ({"cu_seqlens": index([1, 12])}, PACKED, "must run from 0 to the 12 rows of x, got 1 to 12"),
    ({"cu_seqlens": index([0, 13])}, PACKED, "must run from 0 to the 12 rows of x, got 0 to 13"),
    ({"cu_seqlens": index([0, 8, 7, 12])}, PACKED, "must not decrease, but goes from 8 to 7"),
    ({"cu_seqlens": index([0])}, PACKED, "must run from 0 to the 12 rows of x, got 0 to 0"),
    ({"lengths": index([1, 2], device="meta")}, X, "lengths is on meta and x on cpu"),
]


@pytest.mark.parametrize("operator", ["short_conv", "long_conv", "legendre_conv"])
@pytest.mark.parametrize(("layout", "x", "message"), LAYOUT_ERRORS)
def test_contract_9_layouts(operator: str, layout: dict[str, Any], x: torch.Tensor, message: str) -> None:
    parameter = torch.randn(4, 3) if operator == "short_conv" else TAPS
    options = {"horizon": 5} if operator == "legendre_conv" else {}
    with pytest.raises(ValueError, match=f"^{operator}: .*{message}"):
        getattr(hk, operator)(x, parameter, **options, **layout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": X[0, 0]}, r"x must be padded \(B, L, D\) or packed \(T, D\) with D >= 1, got \(4,\)"),
        ({"x": X[..., :0]}, r"x must be padded .* got \(2, 6, 0\)"),
        ({"x": X.int()}, "x must be float32, bfloat16, float16 or float64, got torch.int32"),
        ({"x": X.to(torch.complex64)}, "x must be float32, .* got torch.complex64"),
        ({"filter": torch.randn(3, 5)}, r"filter must be \(G, n\) .* divisor of the 4 channels of x, got \(3, 5\)"),
        ({"filter": torch.randn(2, 0)}, r"filter must be \(G, n\) with n >= 1"),
        ({"filter": torch.randn(0, 5)}, r"filter must be \(G, n\)"),
        ({"filter": torch.randn(5)}, r"filter must be \(G, n\)"),
        ({"filter": TAPS.double()}, "filter must be torch.float32 beside torch.float32 x, got torch.float64"),
        ({"filter": TAPS.half(), "x": X.bfloat16()}, "filter must be torch.bfloat16 or torch.float32 beside"),
        ({"x": X.double()}, "filter must be torch.float64 beside torch.float64 x, got torch.float32"),
        ({"filter": TAPS.to("meta")}, "filter is on meta and x on cpu; they must share a device"),
        ({"skip": torch.randn(2)}, r"skip must have shape \(4,\), got \(2,\)"),
        ({"pre_gate": X[:1]}, r"pre_gate must have shape \(2, 6, 4\), got \(1, 6, 4\)"),
        ({"pre_gate": X.double()}, "pre_gate must be torch.float32 beside torch.float32 x, got torch.float64"),
        ({"post_gate": X[:, 0]}, r"post_gate must have shape \(2, 6, 4\), got \(2, 4\)"),
        ({"post_gate": X, "last_only": True}, r"post_gate must have shape \(2, 4\), got \(2, 6, 4\)"),
    ],
)
def test_contract_9_long_conv(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^long_conv: {message}"):
        long(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": torch.randn(4)}, r"weight must be \(D, W\) with W >= 1, got \(4,\)"),
        ({"weight": torch.randn(4, 0)}, r"weight must be \(D, W\) with W >= 1"),
        ({"weight": torch.randn(2, 3)}, r"weight must have shape \(4, 3\), got \(2, 3\)"),
        ({"bias": torch.randn(3)}, r"bias must have shape \(4,\), got \(3,\)"),
        ({"activation": "relu"}, "activation must be None or 'silu', got 'relu'"),
    ],
)
def test_contract_9_short_conv(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^short_conv: {message}"):
        hk.short_conv(**{"x": X, "weight": torch.randn(4, 3), **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
        ({"decay": torch.randn(4)}, r"decay must have shape \(2,\), got \(4,\)"),
        ({"coefficients": torch.randn(3, 4)}, r"coefficients must be \(G, n\)"),
    ],
)
def test_contract_9_legendre_conv(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^legendre_conv: {message}"):
        hk.legendre_conv(**{"x": X, "coefficients": TAPS, "horizon": 5, **arguments})


def test_contract_9_each_error_is_one_line() -> None:
    for layout, x, _ in LAYOUT_ERRORS:
        with pytest.raises(ValueError) as failure:
            long(x, **layout)
        assert "\n" not in str(failure.value)


def test_lists_arrays_and_integer_masks_say_where_sequences_lie() -> None:
    mixer, x, lengths = hk.nn.HyenaMixer(4, 5), X, [6, 2]
    want = mixer(x, lengths=index(lengths))
    real = torch.arange(6) < index(lengths)[:, None]
    for where in (
        {"lengths": lengths},
        {"lengths": np.array(lengths)},
        {"lengths": lengths, "starts": [0, 0]},
        {"mask": real},
        {"mask": real.long()},
        {"mask": real.int().tolist()},
        {"mask": real.numpy()},
    ):
        torch.testing.assert_close(mixer(x, **where), want, rtol=0, atol=0)
    backwards = np.array([2, 6])[::-1]
    torch.testing.assert_close(mixer(x, lengths=backwards), want, rtol=0, atol=0)
    packed = hk.long_conv(PACKED, TAPS, cu_seqlens=index([0, 5, 12]))
    for cu_seqlens in ([0, 5, 12], np.array([0, 5, 12])):
        torch.testing.assert_close(hk.long_conv(PACKED, TAPS, cu_seqlens=cu_seqlens), packed, rtol=0, atol=0)
    assert hk.long_conv(X[:0], TAPS, lengths=[]).shape == (0, 6, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: long(X.numpy()), "long_conv: x must be a tensor, got numpy.ndarray"),
        (lambda: long(filter=None), "long_conv: filter must be a tensor, got builtins.NoneType"),
        (lambda: long(pre_gate=X.tolist()), "long_conv: pre_gate must be a tensor, got builtins.list"),
        (lambda: hk.short_conv(X, [[1.0]] * 4), "short_conv: weight must be a tensor, got builtins.list"),
        (lambda: hk.legendre_conv(X, TAPS, horizon=5.5), "legendre_conv: horizon must be an int, got 5.5"),
        (lambda: hk.nn.HyenaMixer(4, 5)(X.double()), "HyenaMixer: x must be torch.float32 .*, got torch.float64"),
        (lambda: hk.nn.HyenaMixer(4, 5)(X.long()), "HyenaMixer: x must be torch.float32 .*, got torch.int64"),
        (lambda: hk.nn.HyenaMixer(4, 5)(X.tolist()), "HyenaMixer: x must be a tensor, got builtins.list"),
        (lambda: long(X.to_sparse()), "long_conv: x must be a dense tensor, got torch.sparse_coo"),
        (lambda: long(torch.nested.nested_tensor([*X])), "long_conv: x must be a dense tensor, got a nested one"),
        (lambda: long(filter=TAPS.to_sparse()), "long_conv: filter must be a dense tensor, got torch.sparse_coo"),
        (lambda: long(segments=(None, None)), "long_conv: segments must be Segments, got tuple"),
        (lambda: hk.legendre_filter([[1.0]], 5), "legendre_filter: coefficients must be a tensor, got list"),
        (lambda: hk.legendre_filter(TAPS, 5, [1.0, 2.0]), "legendre_filter: decay must be a tensor, got list"),
        (lambda: hk.legendre_filter(TAPS, 5, torch.ones(2, device="meta")), "legendre_filter: decay is on meta and"),
        (lambda: hk.legendre_conv(X, TAPS, horizon=1 << 63), "legendre_conv: horizon must fit in 64 bits"),
        (lambda: dropout(X, float("nan"), index([1])), "dropout: probability must be from 0 to 255/256, got nan"),
        (lambda: dropout(X, float("inf"), index([1])), "dropout: probability must be from 0 to 255/256, got inf"),
        (lambda: dropout(X, "a", index([1])), "dropout: probability must be from 0 to 255/256, got 'a'"),
        (
            lambda: hk.nn.HyenaMixer(4, 5, filter=lambda g, k: hk.nn.LegendreFilter(g, 7)),
            "HyenaMixer: filter must make",
        ),
        (lambda: hk.nn.HyenaMixer(4, 5, filter=torch.nn.Linear), "HyenaMixer: filter must make a Filter of 4 groups"),
    ],
)
def test_contract_9_types(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_strided_taps_are_taps() -> None:
    wide = torch.randn(4, 10)
    torch.testing.assert_close(long(filter=wide[::2, ::2]), long(filter=wide[::2, ::2].contiguous()))


def test_segments_take_the_place_of_lengths() -> None:
    x, weight = torch.randn(2, 9, 4), torch.randn(4, 3)
    made = Segments.of("short_conv", x, torch.tensor([9, 5]))
    want = hk.short_conv(x, weight, lengths=torch.tensor([9, 5]))
    assert torch.equal(hk.short_conv(x, weight, segments=made), want)
    with pytest.raises(ValueError, match=r"short_conv: segments take the place of lengths, starts and cu_seqlens"):
        hk.short_conv(x, weight, segments=made, lengths=torch.tensor([9, 9]))


@pytest.mark.parametrize("lengths", [[12, None], [[1, 2], [3]], "ab"])
def test_lengths_that_are_no_numbers_are_named(lengths: Any) -> None:
    with pytest.raises(ValueError, match="short_conv: lengths must be"):
        hk.short_conv(torch.randn(2, 9, 4), torch.randn(4, 3), lengths=lengths)


def test_shapes_on_the_meta_device() -> None:
    with torch.device("meta"):
        x, mixer = torch.randn(2, 9, 8), hk.nn.HyenaMixer(8, 16)
        assert hk.short_conv(x, torch.randn(8, 3)).shape == mixer(x).shape == x.shape


@pytest.mark.parametrize(
    ("options", "message"), [({"taps": -1}, "taps must be"), ({"horizon": 6.0}, "horizon must be")]
)
def test_a_filter_refuses_sizes_that_are_none(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"legendre_filter: {message}"):
        hk.legendre_filter(torch.randn(2, 3), **{"horizon": 6, **options})


INTEGERS: dict[str, Callable[[Any], object]] = {
    "legendre_conv: horizon": lambda n: hk.legendre_conv(X, TAPS, horizon=n),
    "legendre_filter: horizon": lambda n: hk.legendre_filter(TAPS, n),
    "legendre_filter: taps": lambda n: hk.legendre_filter(TAPS, 5, taps=n),
    "gated_short_conv: dim": lambda n: hk.gated_short_conv(X, torch.randn(4, 3), None, n),
    "LegendreFilter: groups": lambda n: hk.nn.LegendreFilter(n, 5),
    "ExplicitFilter: horizon": lambda n: hk.nn.ExplicitFilter(2, n),
    "CosineFilter: terms": lambda n: hk.nn.CosineFilter(2, 5, n),
    "ImplicitFilter: bands": lambda n: hk.nn.ImplicitFilter(2, 5, bands=n),
    "ImplicitFilter: width": lambda n: hk.nn.ImplicitFilter(2, 5, width=n),
    "ImplicitFilter: depth": lambda n: hk.nn.ImplicitFilter(2, 5, depth=n),
    "HyenaMixer: dim": lambda n: hk.nn.HyenaMixer(n, 5),
    "HyenaMixer: horizon": lambda n: hk.nn.HyenaMixer(4, n),
    "HyenaMixer: order": lambda n: hk.nn.HyenaMixer(4, 5, order=n),
    "HyenaMixer: groups": lambda n: hk.nn.HyenaMixer(4, 5, groups=n),
    "HyenaMixer: short_width": lambda n: hk.nn.HyenaMixer(4, 5, short_width=n),
    "HyenaMixer.init_state: batch_size": lambda n: hk.nn.HyenaMixer(4, 5).init_state(n),
}


@pytest.mark.parametrize("name", INTEGERS)
def test_an_integer_is_what_python_indexes_with(name: str) -> None:
    """Integer arguments may be anything that Python indexes with, NumPy's integers and 0-d tensors included. A bool,
    float or text, or a value below the minimum, is refused."""
    call = INTEGERS[name]
    for given in (2, np.int64(2), np.int32(2), torch.tensor(2)):
        call(given)
    for wrong in (True, np.True_, torch.tensor(True), 2.0, np.float64(2), "2", None, [2]):
        if wrong is None and name in ("HyenaMixer: groups", "legendre_filter: taps"):
            continue  # None is the default there
        with pytest.raises(ValueError, match=f"^{name} must be an int, got ") as failure:
            call(wrong)
        assert "\n" not in str(failure.value)
    with pytest.raises(ValueError, match=f"^{name} must be at least [01], got -1"):
        call(-1)
    if isinstance(module := call(np.int64(2)), torch.nn.Module):
        assert not any(isinstance(value, np.integer) for value in vars(module).values())
