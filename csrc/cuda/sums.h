// Sums in a fixed order: over the shares of a backward pass, and over the channels of a group.
#pragma once
#include "fft.h"
#include "rows.h"

namespace hyenarec::cuda {

// out[i] (+)= sum over r of in[r, i], r the shares that have an item; `out` may be row 0.
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

// Spectra of groups from those of their channels, in every window.
struct SumGroups {
  static constexpr int kThreads = 256, kSharedBytes = 0, kBlocks = 1;
  const Complex* in;  // (windows, tiles of channels, elements)
  int channels, groups, windows;
  int width, elements;  // kChannels and kElements of the size
  Complex* out;         // (windows, tiles of groups, elements)

  int64_t row(int of) const { return ceil_div(of, width) * elements; }
  int64_t grid() const { return ceil_div(windows * row(groups), kThreads); }

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int64_t index, void*) const {
    int64_t size = ceil_div(groups, width) * elements, channel_size = ceil_div(channels, width) * elements;
    block.phase([&](int thread) {
      int64_t at = index * kThreads + thread;
      if (at >= windows * size) return;
      int64_t window = at / size, rest = at % size, position = rest % elements / width * width;
      int group = int(rest / elements * width + rest % width), each_group = channels / groups;
      Complex sum{};
      for (int d = group * each_group; group < groups && d < (group + 1) * each_group; ++d)
        sum = sum + in[window * channel_size + int64_t(d / width) * elements + position + d % width];
      out[at] = sum;
    });
  }
};

}  // namespace hyenarec::cuda
