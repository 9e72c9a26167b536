"""Dropout, of the input itself or of its GELU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from hyenarec_kernels.ops.checks import DTYPES, check_tensor
from hyenarec_kernels.ops.registration import register


def dropout(x: Tensor, probability: float, seed: Tensor, *, activation: Literal["gelu"] | None = None) -> Tensor:
    """Sets each element to 0 with probability ``p`` and divides the others by ``1 - p``; the seed decides which.

        out = keep(seed) * act(x) / (1 - p),    p = round(256 * probability) / 256

    The mask is computed again wherever it is needed and never stored (Philox 4x32-10 of Salmon et al. 2011, one byte
    per element). It is the same on every backend. With GELU (arXiv 1606.08415, in its exact form, by the error
    function) the forward pass reads the hidden values of a feed-forward layer once and writes them once; the backward
    pass reads twice and writes once.

    Args:
        x: any shape; float32, bfloat16, float16 or float64.
        probability: the probability that an element becomes 0; from 0 to 255/256.
        seed: (1,) int64 on the device of ``x``. Give every call a new one, or it repeats the mask.
        activation: None or "gelu".

    Returns:
        The shape and dtype of ``x``, contiguous. Computed in float32 (float64 for float64) and rounded once. In float32
        the error of GELU is at most 4e-7 of its argument's size.

    Raises:
        ValueError: an argument has a shape, dtype or value that does not fit.
    """
    op = "dropout"
    check_tensor(op, "x", x)
    check_tensor(op, "seed", seed)
    try:
        dropped = round(256 * float(probability))
    except (TypeError, ValueError, OverflowError):  # no number, NaN, Inf
        dropped = -1
    if not 0 <= dropped < 256:
        raise ValueError(f"{op}: probability must be from 0 to 255/256, got {probability!r}")
    if activation not in (None, "gelu"):
        raise ValueError(f"{op}: activation must be None or 'gelu', got {activation!r}")
    if x.dtype not in DTYPES:
        raise ValueError(f"{op}: x must be float32, bfloat16, float16 or float64, got {x.dtype}")
    if seed.shape != (1,) or seed.dtype != torch.int64 or seed.device != x.device:
        raise ValueError(
            f"{op}: seed must be (1,) int64 on {x.device}, got {tuple(seed.shape)} {seed.dtype} on {seed.device}"
        )
    out: Tensor = _operator(x, seed, dropped, activation == "gelu")
    return out


def _output_shapes(x: Tensor, *_: object) -> Sequence[Sequence[int]]:
    return [x.shape]


_operator = register("dropout", ("Tensor x",), "int dropped, bool gelu", _output_shapes, constants=("Tensor seed",))
