// The Fourier transform of the long convolution: index arithmetic, butterflies and passes through shared memory.
//
// A real signal a of M samples is evaluated at the M points with z^M = i, z_k = exp(i pi/(2M)) exp(-2 pi i k/M):
//
//     F(a)[k] = sum_n a[n] exp(i pi n/(2M)) exp(-2 pi i n k/M)
//
// These M complex values hold as much as a real FFT of 2M points. A product F(a) F(b) belongs to the linear convolution
// c of 2M - 1 samples reduced by z^M = i, so its inverse is c[n] + i c[n + M]. Channels need not be paired, spectra
// need no unpacking, and each frequency is only multiplied by the same frequency, so their order does not matter. The
// transform is therefore in place, decimated in frequency forwards (spectra are digit-reversed) and in time backwards,
// and nothing is ever reordered.
//
// A tile is C adjacent channels of one block of M rows. Pass i splits lengths S into R_i times S / R_i: one thread
// takes the R_i elements b + j S / R_i of one channel into registers. Channels are adjacent in shared memory, and one
// row in 17 is left empty, which makes every pass free of bank conflicts (tests count them).
//
//     M               C        threads   bytes shared
//     32 to 256       16       M         136 M
//     512, 1,024      16, 8    256       69,632
//     2,048 and more  2^14/M   512       139,264
#pragma once
#include "device.h"

namespace hyenarec::cuda {

constexpr int kSmallest = 5, kLargest = 14;  // log2 of M: real FFTs of 64 to 32,768 points
constexpr int kScarce = 10;                  // the largest that half the shared memory in the table's last row holds

template <int kLog>
struct Size {
  static constexpr int kPoints = 1 << kLog;  // M
  // A warp of small transforms reads whole 32-byte sectors of rows; large ones are limited by shared memory.
  static constexpr int kChannels = kLog <= 9 ? 16 : kLog <= 11 ? 8 : 1 << (14 - kLog);  // C
  static constexpr int kElements = kPoints * kChannels;
  static constexpr int kThreads = kLog <= 8 ? kElements / 16 : kElements / 32;
  static constexpr int kInner = 16;  // radix of the last pass
  static constexpr int kColumns = kElements / kInner;
  static constexpr int kSharedBytes = (kElements + kElements / 16) * int(sizeof(Complex));
  static_assert(kThreads % kChannels == 0, "a thread stays with one channel");

  // log2 of the radices before the last, at most 5.
  static constexpr int kOuterPasses = kLog <= 8 ? 1 : 2;
  static HYENAREC_DEVICE constexpr int outer(int pass) {
    int rest = kLog - 4;
    return kOuterPasses == 1 ? rest : pass == 0 ? rest - rest / 2 : rest / 2;
  }
};

// cos and sin of k/n of a turn, for constants.
HYENAREC_DEVICE constexpr double cosine(int k, int n) {
  double x = 6.283185307179586477 * (k % n > n / 2 ? k % n - n : k % n) / n, term = 1, sum = 1;
  for (int i = 1; i < 20; ++i) sum += term *= -x * x / ((2 * i - 1) * (2 * i));
  return sum;
}
HYENAREC_DEVICE constexpr double sine(int k, int n) { return cosine(4 * k + 3 * n, 4 * n); }

// z exp(-2 pi i k/n), or by the opposite angle.
template <int k, int n, bool kOpposite>
HYENAREC_DEVICE Complex turn(Complex z) {
  constexpr int quarter = 4 * k % (4 * n);
  if constexpr (quarter == 0) {
    return z;
  } else if constexpr (quarter == 2 * n) {
    return {-z.x, -z.y};
  } else if constexpr (quarter == (kOpposite ? 3 * n : n)) {
    return {z.y, -z.x};
  } else if constexpr (quarter == (kOpposite ? n : 3 * n)) {
    return {-z.y, z.x};
  } else {
    constexpr float c = float(cosine(k, n)), s = float(kOpposite ? sine(k, n) : -sine(k, n));
    return {z.x * c - z.y * s, z.x * s + z.y * c};
  }
}

// The discrete Fourier transform of R values in registers, natural order in and out; kInverse: unscaled.
template <bool kInverse, int R>
HYENAREC_DEVICE void dft(Complex (&x)[R]) {
  if constexpr (R == 2) {
    Complex a = x[0], b = x[1];
    x[0] = a + b, x[1] = a - b;
  } else if constexpr (R == 4) {
    Complex a = x[0] + x[2], b = x[0] - x[2], c = x[1] + x[3], d = turn<1, 4, kInverse>(x[1] - x[3]);
    x[0] = a + c, x[1] = b + d, x[2] = a - c, x[3] = b - d;
  } else if constexpr (R > 4) {
    constexpr int A = R == 8 ? 2 : 4, B = R / A;
    each<B>([&](auto b) {
      Complex column[A];
      each<A>([&](auto a) { column[a.value] = x[B * a.value + b.value]; });
      dft<kInverse>(column);
      each<A>([&](auto a) { x[B * a.value + b.value] = turn<a.value * b.value, R, kInverse>(column[a.value]); });
    });
    Complex y[R];
    each<A>([&](auto a) {
      Complex row[B];
      each<B>([&](auto b) { row[b.value] = x[B * a.value + b.value]; });
      dft<kInverse>(row);
      each<B>([&](auto b) { y[a.value + A * b.value] = row[b.value]; });
    });
    each<R>([&](auto k) { x[k.value] = y[k.value]; });
  }
}

// x[k] times exp(-2 pi i n (k - 1/4 if kFirst)/length), or its conjugate. Roots are computed for k = 1, 4 and 16 and
// multiplied together for the others, few enough times that their rounding stays that of a few operations.
template <bool kInverse, bool kFirst, int R>
HYENAREC_DEVICE void twiddle(Complex (&x)[R], int n, int length) {
  float half_turns = (kInverse ? 2.f : -2.f) * float(n) / float(length);  // exact: length is a power of two
  Complex low[4] = {{}, unit(half_turns), {}, {}};                        // k = 0 to 3
  low[2] = low[1] * low[1], low[3] = low[2] * low[1];
  if constexpr (kFirst) {
    low[0] = unit(-0.25f * half_turns);
    each<3>([&](auto k) { low[k.value + 1] = low[k.value + 1] * low[0]; });
  }
  Complex four = R > 4 ? unit(4 * half_turns) : Complex{}, high{};  // k = 4, k rounded down to a multiple of 4
  each<R>([&](auto index) {
    constexpr int k = decltype(index)::value;
    if constexpr (k % 16 == 0 && k > 0) high = unit(k * half_turns);
    if constexpr (k % 16 == 4) high = k == 4 ? four : high * four;
    if constexpr (k % 4 == 0 && k % 16 > 4) high = high * four;
    if constexpr (k % 4 > 0 || kFirst) x[k] = x[k] * low[k % 4];
    if constexpr (k >= 4) x[k] = x[k] * high;
  });
}

// One butterfly of a pass over lengths kLength: elements first + j kStride of one channel, j < R.
template <class S, int R, int kLength>
struct Butterfly {
  static constexpr int kStride = kLength / R;
  // Rows 16 apart are 17 places apart, and the rows of a column of 16 are adjacent: each address is the first plus a
  // constant.
  static_assert(kStride % 16 == 0 || (kStride == 1 && R == 16));
  static constexpr int kStep = (kStride + kStride / 16) * S::kChannels;
  int channel, offset, first;

  HYENAREC_DEVICE explicit Butterfly(int index) {
    int b = index / S::kChannels;
    channel = index % S::kChannels;
    offset = b % kStride;
    first = b / kStride * kLength + offset;
  }
  HYENAREC_DEVICE int place() const { return (first + (first >> 4)) * S::kChannels + channel; }
  HYENAREC_DEVICE void gather(const Complex* shared, Complex (&x)[R]) const {
    const Complex* at = shared + place();
    each<R>([&](auto j) { x[j.value] = at[j.value * kStep]; });
  }
  HYENAREC_DEVICE void scatter(Complex* shared, const Complex (&x)[R]) const {
    Complex* at = shared + place();
    each<R>([&](auto j) { at[j.value * kStep] = x[j.value]; });
  }
};

// The passes before the last one. source(thread, channel, first row, stride, x) gives the first pass its R rows.
template <class S, class Block, class Source>
HYENAREC_DEVICE void forward_passes(Block& block, Complex* shared, const Source& source) {
  each<S::kOuterPasses>([&](auto index) {
    constexpr int pass = decltype(index)::value;
    constexpr int R = 1 << S::outer(pass), length = pass == 0 ? S::kPoints : S::kPoints >> S::outer(0);
    block.phase([&](int thread) {
      HYENAREC_ONE_BY_ONE for (int i = thread; i < S::kElements / R; i += S::kThreads) {
        Butterfly<S, R, length> at(i);
        Complex x[R];
        if constexpr (pass == 0) {
          source(thread, at.channel, at.first, at.kStride, x);
          each<R>([&](auto j) { x[j.value] = turn<j.value, 4 * R, true>(x[j.value]); });
        } else {
          at.gather(shared, x);
        }
        dft<false>(x);
        twiddle<false, pass == 0>(x, at.offset, length);
        at.scatter(shared, x);
      }
    });
  });
}

// The passes of the inverse after its innermost one. sink(channel, first row, stride, x) takes R rows, M times too
// large.
template <class S, class Block, class Sink>
HYENAREC_DEVICE void inverse_passes(Block& block, Complex* shared, const Sink& sink) {
  each<S::kOuterPasses>([&](auto index) {
    constexpr int pass = S::kOuterPasses - 1 - decltype(index)::value;
    constexpr int R = 1 << S::outer(pass), length = pass == 0 ? S::kPoints : S::kPoints >> S::outer(0);
    block.phase([&](int thread) {
      HYENAREC_ONE_BY_ONE for (int i = thread; i < S::kElements / R; i += S::kThreads) {
        Butterfly<S, R, length> at(i);
        Complex x[R];
        at.gather(shared, x);
        twiddle<true, pass == 0>(x, at.offset, length);
        dft<true>(x);
        if constexpr (pass == 0) {
          each<R>([&](auto j) { x[j.value] = turn<j.value, 4 * R, false>(x[j.value]); });
          sink(at.channel, at.first, at.kStride, x);
        } else {
          at.scatter(shared, x);
        }
      }
    });
  });
}

// The innermost pass. Its butterflies are the columns of a tile; calls body(column's index, column) for each. In
// memory, element r of column i of a spectrum is at r * kColumns + i, so that neighbouring threads read neighbouring
// elements.
template <class S>
using Column = Butterfly<S, S::kInner, S::kInner>;
template <class S, class Block, class Body>
HYENAREC_DEVICE void columns(Block& block, const Body& body) {
  block.phase([&](int thread) {
    HYENAREC_ONE_BY_ONE for (int i = thread; i < S::kColumns; i += S::kThreads) body(i, Column<S>(i));
  });
}
template <class S>
HYENAREC_DEVICE void to_spectrum(const Complex* shared, const Column<S>& column, Complex (&x)[S::kInner]) {
  column.gather(shared, x);
  dft<false>(x);
}
template <class S>
HYENAREC_DEVICE void from_spectrum(Complex* shared, const Column<S>& column, Complex (&x)[S::kInner]) {
  dft<true>(x);
  column.scatter(shared, x);
}

}  // namespace hyenarec::cuda
