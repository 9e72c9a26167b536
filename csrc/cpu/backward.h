// Backward: the same pass over the time-reversed output gradient gives du; the filter's gradient is a correlation of
// output gradient and u for the sampled taps and an outer product of their moments for the blocks, so no gradient of
// K taps exists. Sums over sequences are split into `parts` by the shape alone and added in order: the same bits for any number of threads.
#pragma once
#include "correlate.h"
#include "forward.h"

namespace hyenarec::HYENAREC_ISA {

template <class A>
struct BackwardCall : Call<A> {
  using Call<A>::args, Call<A>::channel_blocks, Call<A>::table_size, Call<A>::groups;
  int64_t parts;
  Arena sums;
  Vec<A>* gradients;  // (parts, channel_blocks, table_size + 1): of the tables, then of skip

  // As many parts as fit in a twentieth of x, at most 16, so that scratch stays small beside the input.
  static int64_t count_parts(const Call<A>& call) {
    int64_t rows = 0;
    for (int64_t s = 0; s < call.args.num_sequences; ++s) rows += call.args.sequences[s].length;
    int64_t fit = rows / (20 * (call.table_size + 1)), most = call.groups.count < 16 ? call.groups.count : 16;
    fit = fit < 2 ? 2 : fit;
    return most < fit ? (most > 0 ? most : 1) : fit;
  }
  explicit BackwardCall(const ConvArgs& a)
      : Call<A>(a),
        parts(count_parts(*this)),
        sums(parts * channel_blocks * (table_size + 1) * int64_t(sizeof(Vec<A>))),
        gradients(sums.template take<Vec<A>>(parts * channel_blocks * (table_size + 1))) {}

  Vec<A>* gradient(int64_t part, int64_t block) const {
    return gradients + (part * channel_blocks + block) * (table_size + 1);
  }
};

template <class A>
struct BackwardWorkspace {
  Engine<A> u, dy;
  Vec<A>* dy_rows;  // kLanes chunks of the output gradient in forward order
  MomentPair<A>* pairs;

  void take(Arena& arena, const BackwardCall<A>& call) {
    const Plan& plan = *call.args.plan;
    u.take(arena, plan, call.groups.max_sequences, call.groups.max_top_nodes);
    dy.take(arena, plan, call.groups.max_sequences, call.groups.max_top_nodes);
    dy_rows = arena.take<Vec<A>>(kLanes * u.chunk_rows());
    if (plan.num_levels > 0)
      pairs = arena.take<MomentPair<A>>(call.groups.max_top_nodes * (top_chunk(plan) / plan.chunk));
  }
};

// dx = (du + skip dy) pre_gate and dpre_gate = (du + skip dy) x, with du from the reversed pass.
template <class A>
void input_gradients(const BackwardCall<A>& call, BackwardWorkspace<A>& work, Group group, const Tables<A>& tables,
                     int64_t c0, int64_t valid, Vec<A> skip) {
  const ConvArgs& args = call.args;
  const Io<A>& io = io_of<A>(args.dtype);
  Engine<A>& engine = work.dy;
  engine.touch(group, {args.dx, args.dpre_gate, args.dpre_gate.data ? args.x : Rows{}, args.pre_gate}, c0, true);
  engine.near_field(tables, [&](const Chunk& chunk, const Vec<A>* dy, Vec<A>* du, const Vec<A>*) {
    const Sequence& sequence = group.sequences[chunk.sequence];
    const Reader<A>& reader = engine.readers[chunk.sequence];
    int64_t from = chunk.index * args.plan->chunk, skipped = reader.begin > from ? reader.begin - from : 0;
    int64_t rows = args.plan->chunk - skipped, reversed_rows = reader.end;
    if (args.skip)
      for (int64_t i = skipped; i < args.plan->chunk; ++i) du[i] += skip * dy[i];
    auto block = [&](Rows tensor) {
      Block b = sequence_block(tensor, sequence, c0, io.element_size, reversed_rows);
      return b.data ? Reader<A>::at(b, from + skipped) : b;
    };
    if (args.dx.data) io.store(block(args.dx), du + skipped, block(args.pre_gate), rows, valid);
    if (args.dpre_gate.data) io.store(block(args.dpre_gate), du + skipped, block(args.x), rows, valid);
  });
}

// dpost_gate = grad * (conv(u) + skip u); the gradients of taps and skip by correlation, chunk by chunk.
template <class A>
void output_side(const BackwardCall<A>& call, BackwardWorkspace<A>& work, Group group, const Tables<A>& tables,
                 int64_t c0, int64_t valid, Vec<A> skip, const Tables<A>& sums, Vec<A>* dskip) {
  const ConvArgs& args = call.args;
  const Io<A>& io = io_of<A>(args.dtype);
  Engine<A>& engine = work.u;
  engine.touch(group, {args.dpost_gate, args.grad, args.post_gate}, c0, false);
  auto finish = [&](const Chunk& chunk, const Vec<A>* u, Vec<A>* y, const Vec<A>* history) {
    const Sequence& sequence = group.sequences[chunk.sequence];
    int64_t from = chunk.index * args.plan->chunk, rows = sequence.length - from;
    rows = rows < args.plan->chunk ? rows : args.plan->chunk;
    auto block = [&](Rows tensor) {
      Block b = sequence_block(tensor, sequence, c0, io.element_size, 0);
      return b.data ? Reader<A>::at(b, from) : b;
    };
    if (args.dpost_gate.data) {
      if (args.skip)
        for (int64_t i = 0; i < rows; ++i) y[i] += skip * u[i];
      io.store(block(args.dpost_gate), y, block(args.grad), rows, valid);
    }
    if (!args.dsamples && !args.dskip) return;
    Vec<A>* dy = work.dy_rows;
    io.load(dy, block(args.grad), block(args.post_gate), rows, valid);
    int64_t padded = ceil_div(rows, kTapRows) * kTapRows;
    for (int64_t i = rows; i < padded; ++i) dy[i] = Vec<A>{};
    if (args.dskip) {
      Vec<A> sum{};
      for (int64_t i = 0; i < rows; ++i) sum += dy[i] * u[i];
      *dskip += sum;
    }
    if (args.dsamples) {
      correlate_near<A>(sums.near, args.plan->near_taps, dy, u, padded);
      if (history) correlate_far<A>(sums.far - args.plan->far_lag, args.plan->horizon, engine.history_rows(), dy, history, rows);
    }
  };
  if (args.dpost_gate.data) engine.near_field(tables, finish);
  else engine.read_chunks(finish);
}

template <class A>
void backward_item(const BackwardCall<A>& call, BackwardWorkspace<A>& work, int64_t g, int64_t block, Vec<A>* gradient) {
  const ConvArgs& args = call.args;
  const Plan& plan = *args.plan;
  const Io<A>& io = io_of<A>(args.dtype);
  int64_t c0 = call.first_channel(block), valid = call.valid(block);
  Group group = call.groups[g];
  Tables<A> tables = call.tables(block), sums(plan, gradient);
  Vec<A> skip = args.skip ? load_channels<A>(args.skip, 0, args.channels, c0) : Vec<A>{};
  work.dy.read(io, group, args.grad, args.post_gate, c0, valid, true);
  work.u.read(io, group, args.x, args.pre_gate, c0, valid, false);
  bool wants_du = args.dx.data || args.dpre_gate.data;
  if (plan.num_levels > 0) {
    work.dy.far_field(group, tables, wants_du);
    work.u.far_field(group, tables, args.dpost_gate.data != nullptr);
    if (args.dsamples)
      for (int l = 0; l < plan.num_levels; ++l) correlate_level<A>(plan, l, group, work.u, work.dy, sums.blocks[l], work.pairs);
  }
  if (wants_du) input_gradients<A>(call, work, group, tables, c0, valid, skip);
  if (args.dpost_gate.data || args.dsamples || args.dskip)
    output_side<A>(call, work, group, tables, c0, valid, skip, sums, gradient + call.table_size);
  for (int64_t s = 0; s < group.count; ++s)
    for (Rows rows : {args.dx, args.dpre_gate, args.dpost_gate})
      clear_padding<A>(args, rows, group.sequences[s], c0, valid, io.element_size);
}

// Adds up the parts and takes the tables' gradients back to the samples.
template <class A>
void finish_gradients(const BackwardCall<A>& call, int64_t block) {
  const ConvArgs& args = call.args;
  Vec<A>* total = call.gradient(0, block);
  for (int64_t part = 1; part < call.parts; ++part)
    for (int64_t i = 0; i <= call.table_size; ++i) total[i] += call.gradient(part, block)[i];
  int64_t c0 = call.first_channel(block), valid = call.valid(block);
  if (args.dsamples) samples_gradient<A>(*args.plan, Tables<A>(*args.plan, total), args.dsamples, args.channels, c0, valid);
  if (args.dskip) store_some<A>(static_cast<A*>(args.dskip) + c0, total[call.table_size], valid);
}

template <class A>
void backward(const ConvArgs& args, ParallelFor parallel) {
  BackwardCall<A> call(args);
  call.build(parallel);
  auto body = [](void* context, int64_t begin, int64_t end) {
    const BackwardCall<A>& call = *static_cast<const BackwardCall<A>*>(context);
    BackwardWorkspace<A> work;
    Arena count;
    work.take(count, call);
    Arena arena(count.used());
    work.take(arena, call);
    for (int64_t item = begin; item < end; ++item) {
      int64_t part = item / call.channel_blocks, block = item % call.channel_blocks;
      Vec<A>* gradient = call.gradient(part, block);
      memset((void*)gradient, 0, (call.table_size + 1) * sizeof(Vec<A>));
      int64_t first = part * call.groups.count / call.parts, last = (part + 1) * call.groups.count / call.parts;
      for (int64_t g = first; g < last; ++g) backward_item<A>(call, work, g, block, gradient);
    }
  };
  parallel(call.parts * call.channel_blocks, body, &call);
  auto finish = [](void* context, int64_t begin, int64_t end) {
    const BackwardCall<A>& call = *static_cast<const BackwardCall<A>*>(context);
    for (int64_t block = begin; block < end; ++block) finish_gradients<A>(call, block);
  };
  parallel(call.channel_blocks, finish, &call);
}

}  // namespace hyenarec::HYENAREC_ISA
