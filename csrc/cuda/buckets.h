// Sorts packed sequences into buckets by length, on the device; each bucket is a launch of its own. If the sequences do
// not cover the rows one after the other, which only the device can see, rows that none of them writes become zero.
#pragma once
#include "fft.h"
#include "rows.h"

namespace hyenarec::cuda {

// The items of one size M: those of sequences with more rows than `above` and at most M, or with more where M is the
// largest; such a sequence has several items. Items are in the sequences' order, so that every sum over them has a
// fixed order.
struct Bucket {
  int above, points, most;  // items beyond `most`, which only overlapping sequences have, are left out
  bool largest;
  Item* list;
  int* count;
};

struct AssignBuckets {
  static constexpr int kMost = kLargest - kSmallest + 1;
  static constexpr int kThreads = 256, kSharedBytes = 2 * kThreads * int(sizeof(int)), kBlocks = 1, kOutputs = 3;
  Sequences sequences;
  int num_sequences;
  Bucket buckets[kMost];  // one thread block each
  int num_buckets;
  Dtype dtype;
  int channels;
  Rows outputs[kOutputs];  // or null

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int64_t index, void* memory) const {
    auto *counts = static_cast<int*>(memory), *covering = counts + kThreads;
    const Bucket& bucket = buckets[index];
    auto blocks = [&](int s) {
      int length = sequences.span({s, 0}, 0).length;
      return length <= bucket.above || (length > bucket.points && !bucket.largest)
                 ? 0
                 : int(ceil_div(length, bucket.points));
    };
    int chunk = int(ceil_div(num_sequences, kThreads));
    auto end = [&](int thread) { return chunk * (thread + 1) < num_sequences ? chunk * (thread + 1) : num_sequences; };
    block.phase([&](int thread) {
      int sum = 0, covers = num_sequences > 0 || sequences.rows == 0;
      for (int s = chunk * thread; s < end(thread); ++s) sum += blocks(s), covers &= sequences.follows(s, num_sequences);
      counts[thread] = sum, covering[thread] = covers;
    });
    block.phase([&](int thread) {
      int at = 0;
      for (int t = 0; t < thread; ++t) at += counts[t];
      if (thread == kThreads - 1) *bucket.count = at + counts[thread] < bucket.most ? at + counts[thread] : bucket.most;
      for (int s = chunk * thread; s < end(thread); ++s)
        for (int number = 0, n = blocks(s); number < n && at < bucket.most; ++number) bucket.list[at++] = {s, number};
    });
    block.phase([&](int thread) {
      bool covers = true;
      for (int t = 0; t < kThreads; ++t) covers &= covering[t] != 0;
      if (covers) return;
      int64_t count = int64_t(sequences.rows) * channels, step = int64_t(num_buckets) * kThreads;
      each<kOutputs>([&](auto o) {
        const Rows& to = outputs[o.value];
        for (int64_t i = index * kThreads + thread; to.data && i < count; i += step)
          with_dtype(dtype, [&](auto type) {
            using T = decltype(type);
            static_cast<T*>(to.data)[i / channels * to.row_stride + i % channels] = T::of(0.f);
          });
      });
    });
  }
};

}  // namespace hyenarec::cuda
