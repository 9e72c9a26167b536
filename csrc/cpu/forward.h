// Forward: o = post_gate * (conv(pre_gate * x) + skip * pre_gate * x), one work item a group of sequences and channel
// block; items are independent, so any number of threads gives the same bits.
#pragma once
#include "engine.h"

namespace hyenarec::HYENAREC_ISA {

template <class A>
const Io<A>& io_of(Dtype dtype) {
  if constexpr (sizeof(A) == 8) return kIo<double, double>;
  else return dtype == Dtype::bf16 ? kIo<float, Bf16> : dtype == Dtype::f16 ? kIo<float, F16> : kIo<float, float>;
}

// Groups of consecutive sequences with about `target` rows each: enough lanes to share table loads, few enough for a
// core's own cache to hold them from one channel block to the next: 65,536 values are 256 KiB a tensor (32 x 1024: 65
// cycles a vector, 80 with four times as many). A function of the shape alone.
struct Grouping {
  const Sequence* sequences;
  int64_t *begin, count, max_sequences, max_top_nodes;

  static int64_t target(const ConvArgs& args, int64_t channel_blocks) {
    int64_t rows = 0;
    for (int64_t s = 0; s < args.num_sequences; ++s) rows += args.sequences[s].length;
    int64_t share = rows * channel_blocks / 8;  // at least 8 items where there are rows for them
    int64_t cached = 65536 / args.channels;
    cached = cached < 256 ? 256 : cached;
    return share < cached ? share : cached;
  }

  Grouping(const ConvArgs& args, int64_t channel_blocks, int64_t* storage) : sequences(args.sequences), begin(storage) {
    int64_t limit = target(args, channel_blocks), top = top_chunk(*args.plan), rows = 0, nodes = 0;
    count = max_sequences = max_top_nodes = 0;
    begin[0] = 0;
    for (int64_t s = 0; s < args.num_sequences; ++s) {
      rows += args.sequences[s].length, nodes += ceil_div(args.sequences[s].length, top);
      bool whole_lanes = (s + 1 - begin[count]) % kLanes == 0 || args.sequences[s].length >= limit;
      if ((rows >= limit && whole_lanes) || s + 1 == args.num_sequences) {
        max_sequences = s + 1 - begin[count] > max_sequences ? s + 1 - begin[count] : max_sequences;
        max_top_nodes = nodes > max_top_nodes ? nodes : max_top_nodes;
        begin[++count] = s + 1;
        rows = nodes = 0;
      }
    }
  }
  Group operator[](int64_t g) const { return {sequences + begin[g], begin[g + 1] - begin[g]}; }
};

// What every item of a call needs, built once.
template <class A>
struct Call {
  const ConvArgs& args;
  int64_t channel_blocks, table_size;
  Arena arena;
  Vec<A>* table_storage;
  Grouping groups;

  static int64_t bytes(const ConvArgs& args, int64_t channel_blocks) {
    Arena count;
    count.take<Vec<A>>(table_vectors(*args.plan) * channel_blocks);
    count.take<int64_t>(args.num_sequences + 1);
    return count.used();
  }
  explicit Call(const ConvArgs& a)
      : args(a),
        channel_blocks(ceil_div(a.channels, kWidth<A>)),
        table_size(table_vectors(*a.plan)),
        arena(bytes(a, channel_blocks)),
        table_storage(arena.template take<Vec<A>>(table_size * channel_blocks)),
        groups(a, channel_blocks, arena.template take<int64_t>(a.num_sequences + 1)) {}

  Tables<A> tables(int64_t block) const { return {*args.plan, table_storage + block * table_size}; }
  int64_t first_channel(int64_t block) const { return block * kWidth<A>; }
  int64_t valid(int64_t block) const {
    int64_t left = args.channels - first_channel(block);
    return left < kWidth<A> ? left : kWidth<A>;
  }
  void build(ParallelFor parallel) {
    auto body = [](void* self, int64_t begin, int64_t end) {
      Call& call = *static_cast<Call*>(self);
      for (int64_t b = begin; b < end; ++b)
        build_tables<A>(*call.args.plan, call.args.samples, call.args.channels, call.first_channel(b), call.tables(b));
    };
    parallel(channel_blocks, body, this);
  }
};

// Zeros over the rows of a batch row that are no part of the sequence.
template <class A>
void clear_padding(const ConvArgs& args, Rows rows, const Sequence& sequence, int64_t c0, int64_t valid,
                   int64_t element) {
  if (!rows.data || args.padded_length == 0) return;
  Sequence whole{sequence.batch, 0, args.padded_length};
  Block block = sequence_block(rows, whole, c0, element, 0);
  clear_rows(block, sequence.start, valid * element);
  int64_t end = sequence.start + sequence.length;
  clear_rows(Reader<A>::at(block, end), args.padded_length - end, valid * element);
}

template <class A>
void forward_item(const Call<A>& call, Engine<A>& engine, int64_t item) {
  const ConvArgs& args = call.args;
  const Io<A>& io = io_of<A>(args.dtype);
  int64_t block = item % call.channel_blocks, c0 = call.first_channel(block), valid = call.valid(block);
  Group group = call.groups[item / call.channel_blocks];
  Tables<A> tables = call.tables(block);
  Vec<A> skip = args.skip ? load_channels<A>(args.skip, 0, args.channels, c0) : Vec<A>{};
  engine.read(io, group, args.x, args.pre_gate, c0, valid, false);
  engine.touch(group, {args.out, args.post_gate}, c0, false);
  engine.far_field(group, tables, true);
  engine.near_field(tables, [&](const Chunk& chunk, const Vec<A>* u, Vec<A>* y, const Vec<A>*) {
    const Sequence& sequence = group.sequences[chunk.sequence];
    int64_t from = chunk.index * args.plan->chunk, rows = sequence.length - from;
    rows = rows < args.plan->chunk ? rows : args.plan->chunk;
    if (args.skip)
      for (int64_t i = 0; i < rows; ++i) y[i] += skip * u[i];
    Block out = sequence_block(args.out, sequence, c0, io.element_size, 0);
    Block gate = sequence_block(args.post_gate, sequence, c0, io.element_size, 0);
    io.store(Reader<A>::at(out, from), y, gate.data ? Reader<A>::at(gate, from) : gate, rows, valid);
  });
  for (int64_t s = 0; s < group.count; ++s)
    clear_padding<A>(args, args.out, group.sequences[s], c0, valid, io.element_size);
}

template <class A>
void forward(const ConvArgs& args, ParallelFor parallel) {
  Call<A> call(args);
  call.build(parallel);
  auto body = [](void* context, int64_t begin, int64_t end) {
    const Call<A>& call = *static_cast<const Call<A>*>(context);
    Engine<A> engine;
    Arena count;
    engine.take(count, *call.args.plan, call.groups.max_sequences, call.groups.max_top_nodes);
    Arena arena(count.used());
    engine.take(arena, *call.args.plan, call.groups.max_sequences, call.groups.max_top_nodes);
    for (int64_t item = begin; item < end; ++item) forward_item<A>(call, engine, item);
  };
  parallel(call.groups.count * call.channel_blocks, body, &call);
}

}  // namespace hyenarec::HYENAREC_ISA
