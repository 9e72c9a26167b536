"""Each check of a contract passes, and then fails on an implementation that is broken on purpose."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from operator_checks import check_causality, check_gradients, check_padding, check_step, check_streaming
from torch import Tensor

from hyenarec_kernels import backends
from hyenarec_kernels.backends import reference
from hyenarec_kernels.backends.reference import direct, fourier
from hyenarec_kernels.backends.reference.rows import Rows
from hyenarec_kernels.nn import HyenaMixer
from hyenarec_kernels.nn import mixer as mixer_module

long_conv_module = import_module("hyenarec_kernels.backends.reference.long_conv")
mixer_step_module = import_module("hyenarec_kernels.backends.reference.mixer_step")


@pytest.fixture(autouse=True)
def _reference() -> object:
    with backends.use("reference"):
        yield


def test_causality_fails_with_a_circular_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    taps = 20  # enough for the FFT form
    check_causality("long_conv", taps, 1e-12)
    monkeypatch.setattr(fourier, "fft_size", lambda least: least - (taps - 1))  # too small: the tail wraps around
    with pytest.raises(AssertionError):
        check_causality("long_conv", taps, 1e-12)


def test_causality_fails_with_a_centred_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    check_causality("short_conv", 3, 0)
    convolve = direct.convolve
    monkeypatch.setattr(direct, "convolve", lambda u, taps, rows: convolve(u, taps, rows).roll(-1, 0))
    with pytest.raises(AssertionError):
        check_causality("short_conv", 3, 0)


@pytest.mark.parametrize("operator", ["short_conv", "long_conv"])
@pytest.mark.parametrize("layout", ["left", "right"])
def test_padding_fails_without_the_mask(operator: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_padding(operator, layout, taps=4)
    monkeypatch.setattr(Rows, "keep_real", lambda self, values: values)
    with pytest.raises(AssertionError):
        check_padding(operator, layout, taps=4)


@pytest.mark.parametrize("operator", ["short_conv", "long_conv"])
def test_padding_fails_when_packed_sequences_see_each_other(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_padding(operator, "packed", taps=4)
    nothing = torch.zeros(0, dtype=torch.int64)
    monkeypatch.setattr(Rows, "borders", lambda self, width: (nothing, nothing))
    with pytest.raises(AssertionError):
        check_padding(operator, "packed", taps=4)


def test_streaming_fails_with_a_state_one_event_late(monkeypatch: pytest.MonkeyPatch) -> None:
    mixer, x = HyenaMixer(4, 6).double(), torch.randn(2, 12, 4, dtype=torch.float64)
    check_streaming(mixer, x, 5, 1e-11)

    conv_step = reference.conv_step

    def late(x: Tensor, history: Tensor, taps: Tensor, steps: Tensor, *gates: Tensor | None) -> Tensor:
        return conv_step(x, history, taps, steps - 1, *gates)

    check_step(4, 6, 2, torch.float64)
    monkeypatch.setattr(reference, "conv_step", lambda x, history, *rest: conv_step(x, history.clone(), *rest))
    with pytest.raises(AssertionError, match="worst at position 1"):
        check_step(4, 6, 2, torch.float64)
    monkeypatch.setattr(mixer_step_module, "conv_step", late)
    with pytest.raises(AssertionError, match="worst at position"):
        check_streaming(mixer, x, 5, 1e-11)


def test_streaming_fails_when_prefill_forgets_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    mixer, x = HyenaMixer(4, 6).double(), torch.randn(2, 12, 4, dtype=torch.float64)
    last_rows = mixer_module.last_rows
    monkeypatch.setattr(mixer_module, "last_rows", lambda v, first, length, n: last_rows(v, first, length - 1, n))
    with pytest.raises(AssertionError, match="worst at position"):
        check_streaming(mixer, x, 5, 1e-11)


@pytest.mark.parametrize("operator", ["short_conv", "long_conv"])
def test_gradients_fail_when_transposed(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_gradients(operator, 4)
    monkeypatch.setattr(direct, "correlate", direct.convolve)  # runs forward in time instead of backward
    with pytest.raises(AssertionError, match="x"):
        check_gradients(operator, 4)


def test_gradients_fail_when_a_spectrum_is_not_conjugated(monkeypatch: pytest.MonkeyPatch) -> None:
    check_gradients("long_conv", 15)
    monkeypatch.setattr(torch.Tensor, "conj", lambda self: self)
    with pytest.raises(AssertionError, match="filter"):
        check_gradients("long_conv", 15)


def test_gradients_fail_when_the_gate_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_conv_module, "_gated", lambda x, pre_gate: x.reshape(-1, x.shape[-1]))
    with pytest.raises(AssertionError, match="skip"):
        check_gradients("long_conv", 15)
