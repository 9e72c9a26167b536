// Only the last row of each sequence: horizon multiply-adds a channel.
#pragma once
#include "forward.h"

namespace hyenarec::HYENAREC_ISA {

// args.samples holds every tap the longest sequence can use; args.out and post_gate are (sequences, channels).
template <class A>
void last_rows(const ConvArgs& args, ParallelFor parallel) {
  struct Context {
    const ConvArgs& args;
    int64_t blocks;
  } context{args, ceil_div(args.channels, kWidth<A>)};
  auto body = [](void* self, int64_t begin, int64_t end) {
    constexpr int64_t kRowsAtOnce = 32;
    const Context& c = *static_cast<const Context*>(self);
    const ConvArgs& args = c.args;
    const Io<A>& io = io_of<A>(args.dtype);
    Vec<A> u[kRowsAtOnce];
    for (int64_t item = begin; item < end; ++item) {
      int64_t s = item / c.blocks, c0 = item % c.blocks * kWidth<A>;
      int64_t valid = args.channels - c0 < kWidth<A> ? args.channels - c0 : kWidth<A>;
      const Sequence& sequence = args.sequences[s];
      int64_t taps = sequence.length < args.plan->num_samples ? sequence.length : args.plan->num_samples;
      Block x = sequence_block(args.x, sequence, c0, io.element_size);
      Block gate = sequence_block(args.pre_gate, sequence, c0, io.element_size, 0);
      Vec<A> y{};
      for (int64_t from = sequence.length - taps; from < sequence.length; from += kRowsAtOnce) {
        int64_t rows = sequence.length - from < kRowsAtOnce ? sequence.length - from : kRowsAtOnce;
        io.load(u, 0, at(x, from), gate.data ? at(gate, from) : gate, rows, {1, valid});
        for (int64_t i = 0; i < rows; ++i)
          y += u[i] * load_channels<A>(args.samples, sequence.length - 1 - from - i, args.channels, c0);
        if (args.skip && from + rows == sequence.length)
          y += u[rows - 1] * load_channels<A>(args.skip, 0, args.channels, c0);
      }
      Sequence target{0, s, 1};
      Block out = sequence_block(args.out, target, c0, io.element_size, 0);
      Block post = sequence_block(args.post_gate, target, c0, io.element_size, 0);
      if (sequence.length == 0) clear_rows(out, 1, valid * io.element_size);
      else io.store(out, &y, 0, post, 1, {1, valid});
    }
  };
  parallel(args.num_sequences * context.blocks, body, &context);
}

}  // namespace hyenarec::HYENAREC_ISA
