"""Where one form of the long convolution becomes faster than another, in taps, with what each number rests on.

A filter is convolved directly (a multiply-add a tap), as Toeplitz products, as low-rank blocks (Legendre filters only)
or through the FFT. Taps are those that the call can use: at most the rows of its longest sequence.
"""

from __future__ import annotations

# The reference goes direct up to this many taps, then through the FFT. Measured: 14,000 rows of 64 channels, one core.
REFERENCE_DIRECT = 12

# The cpu backend goes direct up to this many taps; more of an explicit filter are left to the reference's FFT. Measured
# on two AVX-512 cores in float32, nanoseconds per element, direct and FFT: 2.9 to 3.5 and 6 to 7 at 512 taps, 5.0 to
# 5.6 and 8 to 12 at 1,024, 8 to 11 and 7 to 18 at 2,048; on one core, as many taps as rows, 10 and 13 at 1,024 (with
# gradients 20 and 25), 14 and 14 at 1,536 (29 and 24), 19 and 13 at 2,048 (38 and 30). A Legendre filter goes as
# blocks, which take about 1.3 at any length: from where, its plan works out from the costs measured in `cpu.plan`. It
# is left to the FFT only where it has more taps than this and no blocks that are cheaper than going direct.
CPU_DIRECT = 1024

# The cuda backend multiplies by Toeplitz matrices up to this many taps, on tensor cores, which is all that its kernel
# takes; more go through the FFT. By arithmetic and not measured, in cycles of a multiprocessor of an H200 per element
# of bfloat16 (128 lanes; 4.3 bytes a picosecond for 132 at 1.75 GHz):
#   memory, either way, 3 inputs and 1 output of 2 bytes at 19 a cycle: 0.4
#   Toeplitz (csrc/cuda/toeplitz_conv.h): 0.15 of tensor cores at 200 taps and 0.3 at 512, 0.3 to 0.5 of instructions
#   FFT of as many complex points as rows, M = 64 to 16,384, there and back: 4.2 operations a point and octave and 14
#       for twist, spectrum and untwist, (8.4 log2 M + 14) / 128 = 0.5 to 1.0; two exchanges through shared memory each
#       way, 64 bytes at 128 a cycle, 0.5; together 1.0 to 1.5, and up to twice that where M is not the length
CUDA_TOEPLITZ = 512

# Triton goes direct up to this many taps where there is no cuda backend; the reference's FFT takes more. By operation
# counts, not measured: 64 reads from cache take about as long as an FFT's passes. A Legendre filter of more goes as
# blocks.
TRITON_DIRECT = 64

# Triton multiplies by Toeplitz blocks where this many taps, from the first number to the second, are shared by groups
# of a multiple of so many channels. By operation counts, not measured: fewer are cheaper one at a time, more through
# the FFT.
TOEPLITZ_TAPS, TOEPLITZ_CHANNELS = (8, 512), 16


def toeplitz(taps: int, groups: int, channels: int) -> bool:
    """Whether Triton computes a filter of ``taps`` taps and ``groups`` groups by Toeplitz products."""
    return TOEPLITZ_TAPS[0] <= taps <= TOEPLITZ_TAPS[1] and channels // groups % TOEPLITZ_CHANNELS == 0
