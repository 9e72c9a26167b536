"""The numbers of taps at which one way to compute the long convolution becomes faster than another, and what they rest
on.

A filter is applied directly (one multiply-add per tap), as Toeplitz products, as low-rank blocks (Legendre filters
only) or through the FFT. Only the taps that a call can use count: at most as many as its longest sequence has rows.
"""

from __future__ import annotations

# Up to this many taps the reference is direct; above, it uses the FFT. Measured: 14,000 rows of 64 channels, one core.
REFERENCE_DIRECT = 12

# Up to this many taps the cpu backend is direct; explicit filters with more are left to the reference's FFT. Measured
# on two AVX-512 cores in float32, nanoseconds per element, direct and FFT: 2.9 to 3.5 and 6 to 7 at 512 taps, 5.0 to
# 5.6 and 8 to 12 at 1,024, 8 to 11 and 7 to 18 at 2,048. On one core, with as many taps as rows: 10 and 13 at 1,024
# (with gradients 20 and 25), 14 and 14 at 1,536 (29 and 24), 19 and 13 at 2,048 (38 and 30). A Legendre filter is
# computed as blocks, at about 1.3 for any length, wherever its plan finds them cheaper than direct, by the costs
# measured in `cpu.plan`. It is left to the FFT only if it has more taps than this and blocks are not cheaper.
CPU_DIRECT = 1024

# Up to this many taps, the most that its kernel takes, the cuda backend uses Toeplitz products on tensor cores;
# explicit filters with more taps go through the FFT. Estimated and not measured, in cycles of a multiprocessor of an
# H200 per element of bfloat16 (128 lanes; 4.3 bytes per picosecond, shared by 132 multiprocessors at 1.75 GHz):
#   memory, either way, 3 inputs and 1 output of 2 bytes at 19 bytes per cycle: 0.4
#   Toeplitz (csrc/cuda/toeplitz_conv.h): tensor cores 0.15 at 200 taps and 0.3 at 512, instructions 0.3 to 0.5
#   FFT of as many complex points as rows, M = 64 to 16,384, and its inverse: 4.2 operations per point and octave, and
#       14 for twist, spectrum and untwist, (8.4 log2 M + 14) / 128 = 0.5 to 1.0; two exchanges through shared memory in
#       each direction, 64 bytes at 128 per cycle, 0.5; together 1.0 to 1.5, and up to twice that if the length is not M
CUDA_TOEPLITZ = 512

# Up to this many taps Triton is direct where there is no cuda backend; explicit filters with more are left to the
# reference's FFT, and Legendre filters with more are computed as blocks. By operation counts, not measured: 64 reads
# from cache take about as long as the passes of an FFT.
TRITON_DIRECT = 64

# Triton uses Toeplitz products if the number of taps is in this range, ends included, and the channels of a group are a
# multiple of the last number. By operation counts, not measured: fewer taps are cheaper one at a time, more through the
# FFT.
TOEPLITZ_TAPS, TOEPLITZ_CHANNELS = (8, 512), 16


def toeplitz(taps: int, groups: int, channels: int) -> bool:
    """Whether Triton computes a filter with this many ``taps`` and ``groups`` by Toeplitz products."""
    return TOEPLITZ_TAPS[0] <= taps <= TOEPLITZ_TAPS[1] and channels // groups % TOEPLITZ_CHANNELS == 0
