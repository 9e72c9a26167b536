"""SASRec's attention in its fastest form: packed sequences in torch's flash kernel give what a padded batch gives."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hyenarec.config import ModelConfig
from hyenarec.mixers import MIXERS, attention
from hyenarec.packing import Packing
from tests.interpreter import python

LENGTHS = torch.tensor([5, 1, 17])
CAUSAL = {"window_size": (-1, 0)}


def flash(q: Tensor, k: Tensor, v: Tensor, bounds_q: Tensor, bounds_k: Tensor, *longest: int, **rule: Any) -> Tensor:
    """Computes what the flash kernel computes, one sequence at a time."""
    assert bounds_q.dtype == torch.int32 and longest == (17, 17)
    causal = rule == CAUSAL
    assert causal or not rule
    parts = []
    for first, last in pairwise(bounds_q.tolist()):
        one = (x[first:last].transpose(0, 1) for x in (q, k, v))
        parts.append(scaled_dot_product_attention(*one, is_causal=causal).transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("name", ["attention", "bert4rec"])
def test_packed_equals_padded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    mixer = MIXERS[name](ModelConfig(mixer=name, dim=16), 0).double()
    x, packing = torch.randn(int(LENGTHS.sum()), 16, dtype=torch.float64), Packing.from_lengths(LENGTHS)
    padded, last = mixer(x, packing), mixer(x, packing, last_only=True)
    monkeypatch.setattr(mixer, "varlen", (flash, CAUSAL))
    monkeypatch.setattr(attention, "takes_packed", lambda qkv: True)
    torch.testing.assert_close(mixer(x, packing), padded)
    torch.testing.assert_close(mixer(x, packing, last_only=True), last)


def test_only_bfloat16_on_a_gpu_goes_packed() -> None:
    assert not attention.takes_packed(torch.zeros(4, 3, 2, 8, dtype=torch.bfloat16))  # CPUs have no such kernel


def test_without_a_gpu_nothing_is_compiled() -> None:
    """torch's flash attention is not imported: its module imports TorchDynamo, which takes as long as torch itself."""
    program = """
import sys, torch
from hyenarec.config import ModelConfig
from hyenarec.model import SequenceModel
SequenceModel(ModelConfig(mixer="attention"), n_items=3)
print("torch._dynamo" in sys.modules)
"""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = python("-c", program, env=environment)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["attention", "bert4rec"])
def test_flash_kernel_on_packed_sequences(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    mixer = MIXERS[name](ModelConfig(mixer=name, dim=64), 0).cuda()
    x, packing = torch.randn(int(LENGTHS.sum()), 64, device="cuda"), Packing.from_lengths(LENGTHS).to("cuda")
    want = mixer(x, packing)
    calls = []
    kernel, rule = mixer.varlen
    monkeypatch.setattr(mixer, "varlen", (lambda *a, **options: calls.append(1) or kernel(*a, **options), rule))
    with torch.autocast("cuda", torch.bfloat16):
        got = mixer(x, packing)
    assert calls
    assert (got - want).norm() < 2e-2 * want.norm()
    assert torch.autograd.grad(got.float().sum(), mixer.qkv.weight)[0].isfinite().all()
