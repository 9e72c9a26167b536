// Packed sequences by size: which launch serves each, decided on the device.
#pragma once
#include "fft.h"
#include "rows.h"

namespace hyenarec::cuda {

// The list of one size's items: sequences of more rows than `above` and at most M, or any more where M is the largest,
// which then have several. In the sequences' order, so that every sum over items has one order.
struct Bucket {
  int above, points, most;  // items: more than `most`, in which only overlapping sequences result, are left out
  bool largest;
  Item* list;
  int* count;
};

struct AssignBuckets {
  static constexpr int kMost = kLargest - kSmallest + 1;
  static constexpr int kThreads = 256, kSharedBytes = kThreads * int(sizeof(int)), kBlocks = 1;
  Sequences sequences;
  int num_sequences;
  Bucket buckets[kMost];  // one block each

  template <class Block>
  HYENAREC_DEVICE void operator()(Block& block, int64_t index, void* memory) const {
    auto* counts = static_cast<int*>(memory);
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
      int sum = 0;
      for (int s = chunk * thread; s < end(thread); ++s) sum += blocks(s);
      counts[thread] = sum;
    });
    block.phase([&](int thread) {
      int at = 0;
      for (int t = 0; t < thread; ++t) at += counts[t];
      if (thread == kThreads - 1) *bucket.count = at + counts[thread] < bucket.most ? at + counts[thread] : bucket.most;
      for (int s = chunk * thread; s < end(thread); ++s)
        for (int number = 0, n = blocks(s); number < n && at < bucket.most; ++number) bucket.list[at++] = {s, number};
    });
  }
};

}  // namespace hyenarec::cuda
