// The filter's part of the FFT convolution: its spectra, computed once per call, and the gradient of its taps from the
// sums of cross spectra.
//
// A filter of more than M taps is cut into sections h_q of M taps. Between an output block and the input block q blocks
// before it lie lags (q - 1) M to (q + 1) M: h_q - i h_{q-1}, called pair q in the code. Pair 0 is h_0 alone, and
// all there is where K <= M.
#pragma once
#include "convolve.h"

namespace hyenarec::cuda {

// The spectrum of one pair for a tile of groups.
template <int kLog>
struct FilterSpectrum {
  using S = Size<kLog>;
  static constexpr int kThreads = S::kThreads, kSharedBytes = S::kSharedBytes, kBlocks = 1;

  const float* filter;  // (groups, taps)
  int groups, taps;
  Items items;   // nothing is done where there are none
  Complex* out;  // (pairs, tiles of groups, kElements)

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int64_t number, void* memory) const {
    if (items.size() == 0) return;
    auto* shared = static_cast<Complex*>(memory);
    int tiles = int(ceil_div(groups, S::kChannels)), tile = int(number % tiles);
    int64_t from = number / tiles * S::kPoints;  // section q; section q - 1 is negative imaginary
    forward_passes<S>(block, shared, [&](int, int c, int first, int stride, auto& x) {
      constexpr int R = sizeof(x) / sizeof(Complex);
      int group = tile * S::kChannels + c;
      const float* row = filter + int64_t(group) * taps;
      each<R>([&](auto j) {
        int64_t tap = from + first + j.value * stride, before = tap - S::kPoints;
        x[j.value].x = group < groups && tap < taps ? row[tap] : 0.f;
        x[j.value].y = group < groups && before >= 0 && before < taps ? -row[before] : 0.f;
      });
    });
    columns<S>(block, [&](int index, const Column<S>& column) {
      Complex x[S::kInner];
      to_spectrum<S>(shared, column, x);
      each<S::kInner>([&](auto k) { out[number * S::kElements + k.value * S::kColumns + index] = x[k.value]; });
    });
  }
};

// The gradient of one section of the filters of a tile of groups: dh_q = Re F^-1(X_q + i X_{q+1}), from summed cross
// spectra X.
template <int kLog>
struct FilterGradient {
  using S = Size<kLog>;
  static constexpr int kThreads = S::kThreads, kSharedBytes = S::kSharedBytes, kBlocks = 1;

  const Complex* cross;  // (pairs, tiles of groups, kElements)
  int groups, taps, pairs;
  int reached;  // lags from here on reach no row: their gradient is zero
  bool add;     // add to what another size wrote
  Items items;  // nothing is added where there are none
  float* out;   // (groups, taps)

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int64_t number, void* memory) const {
    if (add && items.size() == 0) return;
    auto* shared = static_cast<Complex*>(memory);
    int tiles = int(ceil_div(groups, S::kChannels)), tile = int(number % tiles);
    int64_t part = number / tiles;
    columns<S>(block, [&](int index, const Column<S>& column) {
      Complex x[S::kInner];
      each<S::kInner>([&](auto k) {
        int64_t at = number * S::kElements + k.value * S::kColumns + index;
        x[k.value] = part < pairs ? cross[at] : Complex{};
        if (part + 1 < pairs) {
          Complex next = cross[at + int64_t(tiles) * S::kElements];
          x[k.value] = x[k.value] + Complex{-next.y, next.x};
        }
      });
      from_spectrum<S>(shared, column, x);
    });
    inverse_passes<S>(block, shared, [&](int c, int first, int stride, const auto& x) {
      constexpr int R = sizeof(x) / sizeof(Complex);
      int group = tile * S::kChannels + c;
      if (group >= groups) return;
      float* row = out + int64_t(group) * taps;
      each<R>([&](auto j) {
        int64_t tap = part * S::kPoints + first + j.value * stride;
        float value = tap < reached ? x[j.value].x * (1.f / S::kPoints) : 0.f;
        if (tap < taps) row[tap] = add ? row[tap] + value : value;
      });
    });
  }
};

}  // namespace hyenarec::cuda
