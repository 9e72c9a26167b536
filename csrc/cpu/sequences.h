// How a streaming step is divided among threads: each sequence by groups of channels, which are whole cache lines of a
// row.
#pragma once
#include "forward.h"

namespace hyenarec::HYENAREC_ISA {

// Calls `run(count, sequence, c0, valid)` for every channel group of every sequence. The call covers `count` blocks of
// channels, a compile-time constant, from channel c0 on, each `valid` channels wide; that is less than a vector only
// where count is 1. `values` says how many values the step reads per channel.
template <class A, class Run>
void each_channel_group(int64_t num_sequences, int64_t channels, int64_t values, ParallelFor parallel, const Run& run) {
  constexpr int64_t kGroup = kLanes * kWidth<A>;
  struct Job {
    int64_t channels;
    const Run& run;
  } job{channels, run};
  auto body = [](void* context, int64_t begin, int64_t end) {
    const Job& job = *static_cast<const Job*>(context);
    int64_t groups = ceil_div(job.channels, kGroup);
    for (int64_t item = begin; item < end; ++item) {
      int64_t sequence = item / groups, c0 = item % groups * kGroup;
      int64_t left = job.channels - c0 < kGroup ? job.channels - c0 : kGroup, whole = left / kWidth<A>;
      if (whole > 0) with_count<kLanes>(whole, [&](auto count) { job.run(count, sequence, c0, kWidth<A>); });
      if (left % kWidth<A>) job.run(Int<1>{}, sequence, c0 + whole * kWidth<A>, left % kWidth<A>);
    }
  };
  int64_t items = num_sequences * ceil_div(channels, kGroup);
  // Waking a second thread costs as much as a pass over 100,000 values.
  if (items * kGroup * values < 200000) body(&job, 0, items);
  else parallel(items, body, &job);
}

}  // namespace hyenarec::HYENAREC_ISA
