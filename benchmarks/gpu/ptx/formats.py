"""Number formats that NumPy does not have: bfloat16, pairs of 16-bit values, TF32."""

from __future__ import annotations

import numpy as np

from benchmarks.gpu.ptx.memory import Array

PACKED = ("bf16x2", "f16x2")


def to_bfloat16(values: Array) -> Array:
    """The bits of float32 values rounded to the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint32(0x7FFF), rounded).astype(np.uint16)


def from_bfloat16(bits: Array) -> Array:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def round_tf32(values: Array) -> Array:
    """Rounds to 10 bits of mantissa, ties away from zero, as ``cvt.rna.tf32.f32``."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    finite = (bits & np.uint32(0x7F800000)) != 0x7F800000
    return np.where(finite, (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000), bits).view(np.float32)


def cut_tf32(bits: Array) -> Array:
    """The TF32 values that a matrix instruction reads from 32 bits: it ignores the lower bits of the mantissa."""
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)


def halves(bits: Array, bfloat: bool) -> tuple[Array, Array]:
    """The lower and the upper 16-bit value of 32-bit registers, as float32; 16-bit registers give their one value
    twice."""
    low = bits.astype(np.uint16)
    high = (bits >> np.uint32(16)).astype(np.uint16) if bits.itemsize == 4 else low
    if bfloat:
        return from_bfloat16(low), from_bfloat16(high)
    return low.view(np.float16).astype(np.float32), high.view(np.float16).astype(np.float32)


def pack(low: Array, high: Array | None, bfloat: bool) -> Array:
    """Rounds float32 values to 16 bits: two per register or, without `high`, one in 16 bits."""

    def rounded(values: Array) -> Array:
        values = values.astype(np.float32)
        return to_bfloat16(values) if bfloat else values.astype(np.float16).view(np.uint16)

    if high is None:
        return rounded(low)
    return rounded(low).astype(np.uint32) | (rounded(high).astype(np.uint32) << np.uint32(16))
