// Only the convolution's last row of every sequence, one sum over the taps per channel, and its gradients.
#pragma once
#include "rows.h"

namespace hyenarec::cuda {

struct LastRow {
  static constexpr int kChannels = 32, kStrips = 8, kThreads = kChannels * kStrips, kBlocks = 1;
  static constexpr int kSharedBytes = kThreads * int(sizeof(float));

  Dtype dtype;
  int channels, groups, taps, num_sequences, shares;  // shares of the sequences; forward: one for each
  Sequences sequences;
  const float* filter;  // (groups, taps)
  const void* skip;     // (channels,) or null
  Dtype skip_dtype;
  Rows x, pre_gate, post_gate;  // post_gate, `out`, `grad` and `dpost_gate` have one row per sequence
  Rows out;                     // forward only; backward, `grad` is given
  Rows grad, dx, dpre_gate, dpost_gate;
  float* sums;  // (shares, channels, taps): the gradient of each channel's taps; skip's is that of lag 0

  int64_t grid() const { return ceil_div(channels, kChannels) * shares; }

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int64_t index, void* memory) const {
    auto* parts = static_cast<float*>(memory);
    const int share = int(index % shares), first = int(index / shares) * kChannels;
    for (int s = share; s < num_sequences; s += shares) {
      const Span span = sequences.span({s, 0}, 0);
      block.phase([&](int thread) {
        int channel = first + thread % kChannels;
        float sum = 0.f;
        if (channel < channels)
          for (int lag = thread / kChannels; lag < reach(span); lag += kStrips)
            sum += tap(channel, lag) * u(span, channel, lag);
        parts[thread] = sum;
        if (grad.data && channel < channels) backward(span, s, share, channel, thread / kChannels);
      });
      block.phase([&](int thread) {
        int channel = first + thread;
        if (thread >= kChannels || channel >= channels) return;
        float sum = 0.f;
        for (int i = thread; i < kThreads; i += kChannels) sum += parts[i];
        if (out.data) put(out, 0, s, channel, span.length && post_gate.data ? sum * get(post_gate, 0, s, channel) : sum);
        if (grad.data && dpost_gate.data) put(dpost_gate, 0, s, channel, span.length ? sum * get(grad, 0, s, channel) : 0.f);
      });
    }
    if (sums && share >= num_sequences)
      block.phase([&](int thread) {
        for (int lag = thread / kChannels; first + thread % kChannels < channels && lag < taps; lag += kStrips)
          sums[(int64_t(share) * channels + first + thread % kChannels) * taps + lag] = 0.f;
      });
  }

 private:
  HYENAREC_DEVICE int reach(const Span& span) const { return span.length < taps ? span.length : taps; }

  HYENAREC_DEVICE float get(const Rows& from, int64_t batch, int64_t row, int channel) const {
    float value = 0.f;
    with_dtype(dtype, [&](auto type) {
      value = static_cast<const decltype(type)*>(from.data)[batch * from.batch_stride + row * from.row_stride + channel];
    });
    return value;
  }
  HYENAREC_DEVICE void put(const Rows& to, int64_t batch, int64_t row, int channel, float value) const {
    with_dtype(dtype, [&](auto type) {
      using T = decltype(type);
      static_cast<T*>(to.data)[batch * to.batch_stride + row * to.row_stride + channel] = T::of(value);
    });
  }
  HYENAREC_DEVICE float u(const Span& span, int channel, int lag) const {
    int64_t row = int64_t(span.start) + span.length - 1 - lag;
    return get(x, span.batch, row, channel) * (pre_gate.data ? get(pre_gate, span.batch, row, channel) : 1.f);
  }
  HYENAREC_DEVICE float tap(int channel, int lag) const {
    float value = filter[int64_t(channel / (channels / groups)) * taps + lag];
    if (skip && lag == 0)
      with_dtype(skip_dtype, [&](auto type) { value += float(static_cast<const decltype(type)*>(skip)[channel]); });
    return value;
  }

  // The gradients at a thread's rows of a channel, and the sums at its lags.
  HYENAREC_DEVICE void backward(const Span& span, int s, int share, int channel, int strip) const {
    float dy = span.length == 0 ? 0.f : get(grad, 0, s, channel) * (post_gate.data ? get(post_gate, 0, s, channel) : 1.f);
    int from = sequences.packed ? span.start : 0, to = sequences.packed ? span.start + span.length : sequences.rows;
    for (int row = from + strip; (dx.data || dpre_gate.data) && row < to; row += kStrips) {
      int lag = span.start + span.length - 1 - row;
      bool met = lag >= 0 && lag < reach(span);
      float du = met ? tap(channel, lag) * dy : 0.f;
      if (dx.data)
        put(dx, span.batch, row, channel, met && pre_gate.data ? du * get(pre_gate, span.batch, row, channel) : du);
      if (dpre_gate.data) put(dpre_gate, span.batch, row, channel, met ? du * get(x, span.batch, row, channel) : 0.f);
    }
    for (int lag = strip; sums && lag < taps; lag += kStrips) {
      float& sum = sums[(int64_t(share) * channels + channel) * taps + lag];
      sum = (s == share ? 0.f : sum) + (lag < reach(span) ? dy * u(span, channel, lag) : 0.f);
    }
  }
};

}  // namespace hyenarec::cuda
