// The streaming step: one more event of every sequence. A thread block has a tile of channels of one sequence, and its
// threads have strips of the ring's rows, each of which is read once.
#pragma once
#include "packs.h"
#include "rows.h"
#include "short_conv.h"

namespace hyenarec::cuda {

template <class T>
struct ConvStep {
  // 32 channels are a line of 128 bytes.
  static constexpr int kCount = 4, kLanes = 8, kChannels = kCount * kLanes, kThreads = 256, kBlocks = 2;
  static constexpr int kStrips = kThreads / kLanes;
  static constexpr int kSharedBytes = kThreads * kCount * int(sizeof(float));
  int channels;
  int64_t sequences, slots;
  bool aligned;
  Rows x, pre_gate, post_gate, out, history;
  const float* taps;
  const int64_t* steps;

  HYENAREC_DEVICE int64_t tiles() const { return ceil_div(channels, kChannels); }
  int64_t grid() const { return sequences * tiles(); }

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int64_t index, void* memory) const {
    auto* sums = static_cast<float*>(memory);  // (strips, channels)
    int64_t sequence = index / tiles();
    int tile = int(index % tiles()) * kChannels;
    auto* ring = reinterpret_cast<Float32*>(static_cast<float*>(history.data) + sequence * history.batch_stride);
    int64_t oldest = slots > 0 ? steps[sequence] % slots : 0;
    if (oldest < 0) oldest += slots;  // a remainder has the sign of its dividend
    block.phase([&](int thread) {
      int channel = tile + thread % kLanes * kCount, left = channels - channel;
      float total[kCount] = {};
      for (int64_t slot = thread / kLanes; left > 0 && slot < slots; slot += kStrips) {
        int64_t order = slot < oldest ? slot - oldest + slots : slot - oldest;
        auto tap = load<Float32, kCount>(reinterpret_cast<const Float32*>(taps) + order * channels + channel, left, aligned);
        auto u = load<Float32, kCount>(ring + slot * history.row_stride + channel, left, aligned);
        HYENAREC_UNROLL
        for (int c = 0; c < kCount; ++c) total[c] += tap.get(c) * u.get(c);
      }
      HYENAREC_UNROLL
      for (int c = 0; c < kCount; ++c) sums[thread * kCount + c] = total[c];
    });
    block.phase([&](int thread) {
      int channel = tile + thread;
      if (thread >= kChannels || channel >= channels) return;
      auto at = [&](const Rows& rows) { return static_cast<T*>(rows.data) + sequence * rows.row_stride + channel; };
      float u = float(*at(x));
      if (pre_gate.data) u *= float(*at(pre_gate));
      float y = u * taps[slots * channels + channel];
      for (int strip = 0; strip < kStrips; ++strip) y += sums[strip * kChannels + thread];
      if (slots > 0) ring[oldest * history.row_stride + channel] = Float32::of(u);
      if (post_gate.data) y *= float(*at(post_gate));
      *at(out) = T::of(y);
    });
  }
};

}  // namespace hyenarec::cuda
