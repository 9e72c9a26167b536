// The convolution with up to 512 taps, forward and backward, as exact Toeplitz products on tensor cores. Each tensor's
// rows are read from memory and written to it once.
//
// A thread block handles a tile of channels, 32 bytes of a row, and a share of the rounds (columns.h). It reads a round
// into shared memory and multiplies gates in; each warp computes the products of one channel at a time, in place; the
// results are stored, multiplied by their gates. Backward holds the input and the output gradient at once, for the
// filter's gradient; x, pre_gate and grad are then read a second time, by the same block a few microseconds later.
//
// Estimates, counted in the code compiled for sm_90 and not measured: bfloat16, both gates, sequences of 200 rows and
// 200 taps, per element of these rows (a sequence fills 4 columns, so that 256 rows are computed).
//
//                                              forward        backward, all gradients
//     bytes from and to memory                 8              14, and 6 more that the second-level cache may still have
//     flop of tensor cores                     660            2,100
//     warp instructions                        1.25           4.2
//     shared memory of a block, bytes          60,000         97,000
//     on an H100 (132 multiprocessors of 4 instructions a cycle, 1.755 GHz; copy 3.0 TB/s), picoseconds:
//       by memory alone                        2.7            4.7
//       by instructions alone, at 100% / 60%   1.4 / 2.3      4.5 / 7.6
//
// The two blocks of a multiprocessor are in different phases. If memory and instructions overlap well, forward takes
// 2.9 to 3.5 ps, 75 to 92% of a copy's speed, and forward with backward 9 to 11.5 ps; without any overlap, 5 and 17 ps.
// Registers: 92 forward and 112 backward, none spilled.
#pragma once
#include "toeplitz.h"

namespace hyenarec::cuda {

template <class T, bool kBackward>
struct ToeplitzConv {
  using Products = Toeplitz<T>;
  static constexpr int kThreads = 256, kWarps = kThreads / 32;
  static constexpr int kBlocks = kBackward && sizeof(T) == 4 ? 1 : 2;  // per multiprocessor: 255 registers, or 128
  static constexpr int kZeros = Products::kZeros;

  int channels, groups, taps;  // taps: those that reach any row
  int halo, width;             // columns before a round (columns.h), and columns of a round
  int vectors, shares;         // vectors of 16 bytes in a tile; shares of the rounds
  bool wide;                   // the tensors' rows are aligned to 16 bytes
  Sequences sequences;
  Items items;
  const float* filter;  // (groups, taps)
  const void* skip;     // (channels,) or null
  Dtype skip_dtype;
  Product input, gradient;     // u, and backward the gradient of y
  Product of_input[2];         // made from y: forward the output, backward the post-gate's gradient
  Product of_gradient[2];      // made from the transposed convolution of the gradient
  float* sums;                 // (shares, channels, taps) or null: the taps' gradient of a share

  HYENAREC_DEVICE int tile_channels() const { return vectors * Pool<T>::kVector; }
  HYENAREC_DEVICE int tiles() const { return int(ceil_div(channels, tile_channels())); }
  HYENAREC_DEVICE int64_t grid() const { return int64_t(tiles()) * shares; }
  HYENAREC_DEVICE int slots() const { return kRoundColumns + halo; }
  HYENAREC_DEVICE int table_bytes() const { return tile_channels() * Products::table_words(taps) * 4; }
  HYENAREC_DEVICE int pool_bytes() const { return tile_channels() * Pool<T>::channel_bytes(slots()); }
  HYENAREC_DEVICE int shared_bytes() const {
    return kZeros + int(sizeof(Columns)) + table_bytes() + (kBackward ? 2 : 1) * pool_bytes();
  }

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int64_t index, void* memory) const {
    char* shared = static_cast<char*>(memory);
    auto& columns = *reinterpret_cast<Columns*>(shared + kZeros);
    auto* table = reinterpret_cast<uint32_t*>(&columns + 1);
    char* pools = reinterpret_cast<char*>(table) + table_bytes();
    const Pool<T> inputs{pools, slots(), halo}, gradients{pools + pool_bytes(), slots(), 0};
    const Tile tile{int(index / shares) * tile_channels(), channels, vectors, wide};
    const int share = int(index % shares);
    block.phase([&](int thread) {
      for (int i = thread; i < kZeros / 4; i += kThreads) reinterpret_cast<uint32_t*>(shared)[i] = 0;
      int words = Products::table_words(taps);
      for (int i = thread; i < tile_channels() * words; i += kThreads) {
        int channel = tile.first + i / words;
        if (channel < channels)
          table[i] = Products::table_word(filter + int64_t(channel / (channels / groups)) * taps, taps, i % words);
      }
    });
    for (int round = share; int64_t(round) * width < items.size(); round += shares) {
      block.phase([&](int thread) {
        if (thread < kRoundColumns) columns.place(thread, sequences, items, round * width, width, halo);
      });
      block.phase([&](int thread) {
        fill(thread, kThreads, tile, columns, inputs, input);
        if (kBackward) fill(thread, kThreads, tile, columns, gradients, gradient);
        if (thread == 0) columns.find_most();
      });
      block.warps([&](const Warp& warp) {
        for (int c = warp.number; c < tile_channels() && tile.first + c < channels; c += kWarps)
          convolve(warp, tile.first + c, columns, inputs.slot(c, 0), gradients.slot(c, 0),
                   shared, table + c * Products::table_words(taps), share, round == share);
      });
      block.phase([&](int thread) {
        if (of_input[0].value.data) drain(thread, kThreads, tile, columns, inputs, of_input);
        if (kBackward && (of_gradient[0].value.data || of_gradient[1].value.data))
          drain(thread, kThreads, tile, columns, gradients, of_gradient);
      });
    }
    if (kBackward && sums && int64_t(share) * width >= items.size())
      block.phase([&](int thread) {
        for (int i = thread; i < tile_channels() * taps; i += kThreads)
          if (tile.first + i / taps < channels) sums_of(share, tile.first)[i] = 0.f;
      });
  }

 private:
  HYENAREC_DEVICE float* sums_of(int share, int channel) const {
    return sums + (int64_t(share) * channels + channel) * taps;
  }

  HYENAREC_DEVICE void convolve(const Warp& warp, int channel, const Columns& columns, char* u, char* dy,
                                const char* zeros, const uint32_t* table, int share, bool first_round) const {
    float at_zero = 0.f;
    if (skip)
      with_dtype(skip_dtype, [&](auto type) { at_zero = static_cast<const decltype(type)*>(skip)[channel]; });
    const ColumnView inputs{u, columns.before, nullptr, zeros}, gradients{dy, columns.after, nullptr, zeros};
    if (kBackward && sums)
      Products::correlate(warp, gradients, inputs, columns.most_before, 0, sums_of(share, channel), taps,
                          !first_round);
    warp.sync();
    if (!kBackward || of_input[0].value.data) {
      typename Products::Output y{};
      Products::template convolve<false>(warp, y, inputs, columns.most_before, 0, table, taps);
      Products::template put<true>(warp, y, u, at_zero);
    }
    if (kBackward && (of_gradient[0].value.data || of_gradient[1].value.data)) {
      typename Products::Output du{};
      Products::template convolve<true>(warp, du, gradients, columns.most_after, 0, table, taps);
      Products::template put<true>(warp, du, dy, at_zero);
    }
  }
};

}  // namespace hyenarec::cuda
