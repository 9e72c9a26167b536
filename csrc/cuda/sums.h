// Sums in a fixed order: over the shares of a backward pass, and over the channels of a group.
#pragma once
#include "fft.h"
#include "rows.h"

namespace hyenarec::cuda {

// out[i] (+)= sum of in[r, i] over the shares r that have an item; `out` may be row 0 of `in`.
struct SumRows {
  static constexpr int kColumns = 32, kStrips = 8, kThreads = kColumns * kStrips, kBlocks = 1;
  static constexpr int kSharedBytes = kThreads * int(sizeof(float));
  const float* in;
  Items items;
  int64_t shares, columns;
  bool add;
  float* out;

  int64_t grid() const { return ceil_div(columns, kColumns); }

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int64_t index, void* memory) const {
    auto* strips = static_cast<float*>(memory);
    block.phase([&](int thread) {
      int64_t column = index * kColumns + thread % kColumns, rows = items.size() < shares ? items.size() : shares;
      float sum = 0.f;
      if (column < columns)
        for (int64_t r = thread / kColumns; r < rows; r += kStrips) sum += in[r * columns + column];
      strips[thread] = sum;
    });
    block.phase([&](int thread) {
      int64_t column = index * kColumns + thread;
      if (thread >= kColumns || column >= columns) return;
      float sum = add ? out[column] : 0.f;
      for (int s = 0; s < kStrips; ++s) sum += strips[s * kColumns + thread];
      out[column] = sum;
    });
  }
};

// The spectra of groups, summed from those of their channels, for every pair (filter.h).
struct SumGroups {
  static constexpr int kThreads = 256, kSharedBytes = 0, kBlocks = 1;
  const Complex* in;  // (pairs, tiles of channels, elements)
  int channels, groups, pairs;
  int width, elements;  // kChannels and kElements of the Size (fft.h)
  Complex* out;         // (pairs, tiles of groups, elements)

  int64_t row(int of) const { return ceil_div(of, width) * elements; }
  int64_t grid() const { return ceil_div(pairs * row(groups), kThreads); }

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int64_t index, void*) const {
    int64_t size = ceil_div(groups, width) * elements, channel_size = ceil_div(channels, width) * elements;
    block.phase([&](int thread) {
      int64_t at = index * kThreads + thread;
      if (at >= pairs * size) return;
      int64_t pair = at / size, rest = at % size, position = rest % elements / width * width;
      int group = int(rest / elements * width + rest % width), each_group = channels / groups;
      Complex sum{};
      for (int d = group * each_group; group < groups && d < (group + 1) * each_group; ++d)
        sum = sum + in[pair * channel_size + int64_t(d / width) * elements + position + d % width];
      out[at] = sum;
    });
  }
};

}  // namespace hyenarec::cuda
