// The streaming step: one more event of each sequence. It takes `horizon` multiply-adds per channel over a ring of past
// rows, then overwrites the oldest row with the new one. A ring is read in memory order: from its oldest row to its
// end, then from its start.
#pragma once
#include "sequences.h"

namespace hyenarec::HYENAREC_ISA {

// X channel blocks of one sequence, from channel c0 on. Where X is 1 the block may be partial, `valid` channels wide.
template <class A, int X>
void step_blocks(const StepArgs& args, int64_t sequence, int64_t c0, int64_t valid) {
  const Io<A>& io = io_of<A>(args.dtype);
  const int64_t stride = args.history.row_stride, channels = args.channels, slots = args.slots;
  A* ring = slots ? static_cast<A*>(args.history.data) + sequence * args.history.batch_stride + c0 : nullptr;
  const A* taps = static_cast<const A*>(args.taps) + c0;  // the largest lag first
  auto load = [&](const A* p) __attribute__((always_inline)) {
    return X > 1 || valid == kWidth<A> ? load_full<A>(p) : load_some<A>(p, valid);
  };
  Vec<A> sum[2][X] = {};  // of even and odd rows: with X sums alone, additions would wait for each other
  auto add = [&](const A* rows, const A* lags, int64_t count) __attribute__((always_inline)) {
    auto row = [&](Vec<A>* into, int64_t t) __attribute__((always_inline)) {
      for (int x = 0; x < X; ++x)
        into[x] += load(rows + t * stride + x * kWidth<A>) * load(lags + t * channels + x * kWidth<A>);
    };
    int64_t t = 0;
    for (; t + 1 < count; t += 2) row(sum[0], t), row(sum[1], t + 1);
    if (t < count) row(sum[0], t);
  };
  int64_t oldest = slots ? args.steps[sequence] % slots : 0;
  if (oldest < 0) oldest += slots;  // never negative, as torch's remainder
  add(ring + oldest * stride, taps, slots - oldest);
  add(ring, taps + (slots - oldest) * channels, oldest);
  for (int x = 0; x < X; ++x) {
    auto block = [&](Rows rows) {
      return sequence_block(rows, {0, sequence, 1}, c0 + x * kWidth<A>, io.element_size);
    };
    Vec<A> u;
    io.load(&u, 0, block(args.x), block(args.pre_gate), 1, {1, valid});
    Vec<A> y = sum[0][x] + sum[1][x] + u * load(taps + slots * channels + x * kWidth<A>);
    io.store(block(args.out), &y, 0, block(args.post_gate), 1, {1, valid});
    if (slots) store_some<A>(ring + oldest * stride + x * kWidth<A>, u, valid);
  }
}

template <class A>
void step(const StepArgs& args, ParallelFor parallel) {
  each_channel_group<A>(args.num_sequences, args.channels, args.slots, parallel,
                        [&args](auto count, int64_t sequence, int64_t c0, int64_t valid) {
                          step_blocks<A, decltype(count)::value>(args, sequence, c0, valid);
                        });
}

}  // namespace hyenarec::HYENAREC_ISA
