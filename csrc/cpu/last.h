// The output at the last row of each sequence only, and its gradients: `horizon` multiply-adds per channel.
#pragma once
#include "forward.h"
#include "sums.h"

namespace hyenarec::HYENAREC_ISA {

constexpr int64_t kRowsAtOnce = 32, kSequencesAtOnce = 256;

// The plan's samples are every tap the longest sequence can use; args.out and post_gate are (sequences, channels).
template <class A>
void last_rows(const ConvArgs& args, ParallelFor parallel) {
  struct Context {
    const ConvArgs& args;
    int64_t blocks, size;
    Vec<A>* storage;
    const Vec<A>* taps(int64_t b) const { return storage + b * size + args.terms; }
  };
  const int64_t blocks = ceil_div(args.channels, kWidth<A>), size = args.terms + args.plan->num_samples;
  Arena arena(blocks * size * int64_t(sizeof(Vec<A>)));
  Context context{args, blocks, size, arena.base<Vec<A>>()};
  auto build = [](void* self, int64_t begin, int64_t end) {
    const Context& c = *static_cast<const Context*>(self);
    for (int64_t b = begin; b < end; ++b) {
      Vec<A>* taps = filter_values<A>(c.args, b * kWidth<A>, c.storage + b * c.size);
      if (!c.args.rate) continue;
      damp<A>(*c.args.plan, load_channels<A>(c.args.rate, 0, c.args.channels, b * kWidth<A>), taps);
    }
  };
  parallel(blocks, build, &context);
  auto body = [](void* self, int64_t begin, int64_t end) {
    const Context& c = *static_cast<const Context*>(self);
    const ConvArgs& args = c.args;
    const Io<A>& io = io_of<A>(args.dtype);
    Vec<A> u[kRowsAtOnce];
    for (int64_t item = begin; item < end; ++item) {
      int64_t s = item / c.blocks, c0 = item % c.blocks * kWidth<A>;
      int64_t valid = args.channels - c0 < kWidth<A> ? args.channels - c0 : kWidth<A>;
      const Sequence& sequence = args.sequences[s];
      int64_t reach = sequence.length < args.plan->num_samples ? sequence.length : args.plan->num_samples;
      const Vec<A>* newest = c.taps(item % c.blocks) + sequence.length - 1;  // minus a row's index: the tap of that row
      Block x = sequence_block(args.x, sequence, c0, io.element_size);
      Block gate = sequence_block(args.pre_gate, sequence, c0, io.element_size);
      Vec<A> y{};
      for (int64_t from = sequence.length - reach; from < sequence.length; from += kRowsAtOnce) {
        int64_t rows = sequence.length - from < kRowsAtOnce ? sequence.length - from : kRowsAtOnce;
        io.load(u, 0, at(x, from), gate.data ? at(gate, from) : gate, rows, {1, valid});
        for (int64_t i = 0; i < rows; ++i) y += u[i] * newest[-from - i];
        if (args.skip && from + rows == sequence.length)
          y += u[rows - 1] * load_channels<A>(args.skip, 0, args.channels, c0);
      }
      Sequence target{0, s, 1};
      Block out = sequence_block(args.out, target, c0, io.element_size);
      Block post = sequence_block(args.post_gate, target, c0, io.element_size);
      if (sequence.length == 0) clear_rows(out, 1, valid * io.element_size);
      else io.store(out, &y, 0, post, 1, {1, valid});
    }
  };
  parallel(args.num_sequences * context.blocks, body, &context);
}

// Gradients of last_rows. Each item is a channel block, for which `dfilter` and `dskip` add up over the sequences in
// order.
template <class A>
void last_rows_backward(const ConvArgs& args, ParallelFor parallel) {
  auto body = [](void* context, int64_t begin, int64_t end) {
    const ConvArgs& args = *static_cast<const ConvArgs*>(context);
    const Io<A>& io = io_of<A>(args.dtype);
    const int64_t num_taps = args.plan->num_samples;
    const int64_t count = num_taps + 1, vectors = num_taps + count + LongSums<A>::vectors(count);
    Arena arena(vectors * int64_t(sizeof(Vec<A>)));
    Vec<A>*taps = arena.base<Vec<A>>(), *dtaps = taps + num_taps, &dskip = dtaps[num_taps], *total = dtaps + count;
    for (int64_t b = begin; b < end; ++b) {
      int64_t c0 = b * kWidth<A>, valid = args.channels - c0 < kWidth<A> ? args.channels - c0 : kWidth<A>;
      Vec<A> skip = args.skip ? load_channels<A>(args.skip, 0, args.channels, c0) : Vec<A>{};
      for (int64_t t = 0; t < num_taps; ++t) taps[t] = load_channels<A>(args.filter, t, args.channels, c0);
      memset((void*)dtaps, 0, count * sizeof(Vec<A>));
      LongSums<A> sums{dtaps, total, count, kSequencesAtOnce};
      for (int64_t s = 0; s < args.num_sequences; ++s) {
        const Sequence& sequence = args.sequences[s];
        Sequence target{0, s, 1};
        int64_t reach = sequence.length < num_taps ? sequence.length : num_taps, from = sequence.length - reach;
        auto block = [&](Rows rows) { return sequence_block(rows, sequence, c0, io.element_size); };
        auto from_row = [&](Rows rows, int64_t t) { return rows.data ? at(block(rows), t) : Block{}; };
        auto last = [&](Rows rows) { return sequence_block(rows, target, c0, io.element_size); };
        Vec<A> dy, y{}, u[kRowsAtOnce], du[kRowsAtOnce];
        io.load(&dy, 0, last(args.grad), last(args.post_gate), 1, {1, valid});
        for (int64_t t = from; t < sequence.length; t += kRowsAtOnce) {
          int64_t rows = sequence.length - t < kRowsAtOnce ? sequence.length - t : kRowsAtOnce;
          io.load(u, 0, from_row(args.x, t), from_row(args.pre_gate, t), rows, {1, valid});
          for (int64_t i = 0; i < rows; ++i) {
            int64_t lag = sequence.length - 1 - t - i;
            Vec<A> h = lag == 0 ? taps[0] + skip : taps[lag];
            y += h * u[i];
            du[i] = h * dy;
            dtaps[lag] += dy * u[i];
          }
          if (args.dx.data) io.store(from_row(args.dx, t), du, 0, from_row(args.pre_gate, t), rows, {1, valid});
          if (args.dpre_gate.data) io.store(from_row(args.dpre_gate, t), du, 0, from_row(args.x, t), rows, {1, valid});
          if (t + rows == sequence.length) dskip += dy * u[rows - 1];
        }
        if (args.dpost_gate.data) {
          if (sequence.length == 0) clear_rows(last(args.dpost_gate), 1, valid * io.element_size);
          else io.store(last(args.dpost_gate), &y, 0, last(args.grad), 1, {1, valid});
        }
        for (Rows rows : {args.dx, args.dpre_gate}) {
          if (rows.data) clear_rows(block(rows), from, valid * io.element_size);
          clear_padding(args, rows, sequence, c0, valid, io.element_size);
        }
        sums.after(1);
      }
      sums.collect();
      LongSums<A>::finish(total, count);
      if (args.dfilter)
        for (int64_t t = 0; t < num_taps; ++t)
          store_some<A>(static_cast<A*>(args.dfilter) + t * args.channels + c0, total[t], valid);
      if (args.dskip) store_some<A>(static_cast<A*>(args.dskip) + c0, total[num_taps], valid);
    }
  };
  parallel(ceil_div(args.channels, kWidth<A>), body, const_cast<ConvArgs*>(&args));
}

}  // namespace hyenarec::HYENAREC_ISA
