// Forward: o = post_gate * (conv(pre_gate * x) + skip * pre_gate * x). A work item is a group of sequences and a tile
// of channel blocks. Items are independent, so any number of threads gives the same bits.
#pragma once
#include "pass.h"

namespace hyenarec::HYENAREC_ISA {

template <class A>
const Io<A>& io_of(Dtype dtype) {
  if constexpr (sizeof(A) == 8) return kIo<double, double>;
  else return dtype == Dtype::bf16 ? kIo<float, Bf16> : dtype == Dtype::f16 ? kIo<float, F16> : kIo<float, float>;
}

// Writes zeros to the padding of a sequence's batch row, in channels [c0, c0 + channels).
inline void clear_padding(const ConvArgs& args, Rows tensor, const Sequence& sequence, int64_t c0, int64_t channels,
                          int64_t element) {
  if (!tensor.data || args.padded_length == 0) return;
  Block whole = sequence_block(tensor, {sequence.batch, 0, args.padded_length}, c0, element);
  int64_t end = sequence.start + sequence.length;
  clear_rows(whole, sequence.start, channels * element);
  clear_rows(at(whole, end), args.padded_length - end, channels * element);
}

// What all items of a call share, built once: the tables of every channel block, and the division of the work. A group
// is consecutive sequences; all groups have about as many rows, and they depend on the lengths alone. A tile is
// neighbouring channel blocks.
template <class A>
struct Call {
  static constexpr int64_t kItems = 16;

  const ConvArgs& args;
  int64_t channel_blocks, table_size, window_size, tile_blocks, tiles, num_groups, rows = 0, longest = 0;
  Arena arena;
  Vec<A>*table_storage, *window_storage;
  Tables<A>* tables;
  int64_t* group_begin;
  bool own_tables = false;  // each tile is one item and builds its own tables, which no other item reads

  static int64_t bytes(const ConvArgs& args, int64_t blocks) {
    Arena count;
    count.take<Vec<A>>(table_vectors(*args.plan) * blocks);
    count.take<Vec<A>>(window_vectors(args) * blocks);
    count.take<Tables<A>>(blocks);
    count.take<int64_t>(kItems + 1);
    return count.used();
  }
  static int64_t window_vectors(const ConvArgs& args) { return args.rate ? Window<A>::vectors(*args.plan) : 0; }
  explicit Call(const ConvArgs& a)
      : args(a),
        channel_blocks(ceil_div(a.channels, kWidth<A>)),
        table_size(table_vectors(*a.plan)),
        window_size(window_vectors(a)),
        arena(bytes(a, channel_blocks)),
        table_storage(arena.template take<Vec<A>>(table_size * channel_blocks)),
        window_storage(arena.template take<Vec<A>>(window_size * channel_blocks)),
        tables(arena.template take<Tables<A>>(channel_blocks)),
        group_begin(arena.template take<int64_t>(kItems + 1)) {
    for (int64_t b = 0; b < channel_blocks; ++b) {
      tables[b] = Tables<A>(*a.plan, table_storage + b * table_size);
      if (a.rate) tables[b].window = Window<A>(*a.plan, window_storage + b * window_size);
    }
    for (int64_t s = 0; s < a.num_sequences; ++s) {
      rows += a.sequences[s].length;
      longest = a.sequences[s].length > longest ? a.sequences[s].length : longest;
    }
    num_groups = 0;
    int64_t seen = 0;
    for (int64_t s = 0; s < a.num_sequences; ++s) {
      if (s == 0 || seen * kItems >= num_groups * rows) group_begin[num_groups++] = s;
      seen += a.sequences[s].length;
      if (num_groups == kItems) break;
    }
    group_begin[num_groups] = a.num_sequences;
    tile_blocks = kTileBlocks;  // fewer where that leaves too few items; a block has the same bits in any tile
    while (tile_blocks > 1 && num_groups * ceil_div(channel_blocks, tile_blocks) < a.threads) tile_blocks /= 2;
    tiles = ceil_div(channel_blocks, tile_blocks);
  }

  int64_t first_block(int64_t tile) const { return tile * tile_blocks; }
  int64_t first_channel(int64_t tile) const { return first_block(tile) * kWidth<A>; }
  Tile tile(int64_t t) const {
    int64_t left = channel_blocks - first_block(t), blocks = left < tile_blocks ? left : tile_blocks;
    int64_t channels = args.channels - first_channel(t) - (blocks - 1) * kWidth<A>;
    return {blocks, channels < kWidth<A> ? channels : kWidth<A>};
  }
  // Builds the tables in a pass of their own where several items share them; otherwise enter() builds them.
  void build(ParallelFor parallel, int64_t parts) {
    own_tables = parts == 1;
    if (own_tables) return;
    auto body = [](void* self, int64_t begin, int64_t end) { static_cast<Call*>(self)->build_blocks(begin, end); };
    parallel(channel_blocks, body, this);
  }
  void enter(int64_t t) const {
    if (own_tables) build_blocks(first_block(t), first_block(t) + tile(t).blocks);
  }
  void build_blocks(int64_t begin, int64_t end) const {
    Arena room((args.terms + args.plan->num_samples) * int64_t(sizeof(Vec<A>)));
    for (int64_t b = begin; b < end; ++b) {
      Vec<A>* values = filter_values<A>(args, b * kWidth<A>, room.base<Vec<A>>());
      if (args.rate) {
        Vec<A> rate = load_channels<A>(args.rate, 0, args.channels, b * kWidth<A>);
        damp<A>(*args.plan, rate, values);
        tables[b].window.fill(*args.plan, rate);
      }
      if (args.skip) values[0] += load_channels<A>(args.skip, 0, args.channels, b * kWidth<A>);
      build_tables<A>(*args.plan, values, tables[b]);
    }
  }
  // out = y (* factor) for the segment that `pass` holds.
  void store(Block out, const Pass<A>& pass, Block factor, const Segment& segment) const {
    if (!out.data) return;
    if (factor.data) factor = at(factor, segment.from);
    const Io<A>& io = *pass.reader.io;
    (streams() ? io.stream : io.store)(at(out, segment.from), pass.y, pass.stride(), factor, segment.rows,
                                       pass.reader.tile);
  }
  bool streams() const { return rows * args.channels * io_of<A>(args.dtype).element_size > kStreamBytes; }
  // Whether register tiles of y are whole cache lines of `out`.
  bool whole_lines(Block out, int64_t t) const {
    return kWholeLines && io_of<A>(args.dtype).element_size == sizeof(A) && tile(t).valid == kWidth<A> &&
           (uintptr_t(out.data) | uintptr_t(out.stride)) % sizeof(Vec<A>) == 0;
  }
  Reader<A> reader(const Sequence& sequence, Rows a, Rows b, int64_t t, bool reversed = false) const {
    Block first = block(sequence, a, t, reversed), second = block(sequence, b, t, reversed);
    return {&io_of<A>(args.dtype), first, second, sequence.length, tile(t)};
  }
  // What to prefetch: the rows of these tensors that the next segment reads. It belongs to the same sequence (one of
  // args.sequences) or to the one after it.
  Ahead ahead(const Sequence* sequence, const Segment& segment, const Pass<A>& pass, int64_t t,
              const Rows (&tensors)[Ahead::kTensors]) const {
    int64_t from = segment.last ? 0 : segment.from + segment.rows;
    if (segment.last && ++sequence == args.sequences + args.num_sequences) return {};
    int64_t left = sequence->length - from, row_bytes = tile(t).blocks * kWidth<A> * io_of<A>(args.dtype).element_size;
    Ahead next;
    next.rows = left < pass.segment_rows() ? left : pass.segment_rows();
    next.lines = ceil_div(row_bytes, Ahead::kLine);
    for (int i = 0; i < Ahead::kTensors; ++i)
      if (tensors[i].data) next.blocks[i] = at(block(*sequence, tensors[i], t), from);
    return next;
  }
  Block block(const Sequence& sequence, Rows rows, int64_t t, bool reversed = false) const {
    return sequence_block(rows, sequence, first_channel(t), io_of<A>(args.dtype).element_size, reversed);
  }
  void clear_padding_of(Rows tensor, const Sequence& sequence, int64_t t) const {
    int64_t channels = (tile(t).blocks - 1) * kWidth<A> + tile(t).valid;
    clear_padding(args, tensor, sequence, first_channel(t), channels, io_of<A>(args.dtype).element_size);
  }
};

template <class A>
void forward_sequence(const Call<A>& call, Pass<A>& pass, const Sequence& sequence, int64_t t) {
  const ConvArgs& args = call.args;
  Block out = call.block(sequence, args.out, t), gate = call.block(sequence, args.post_gate, t);
  // Where tiles are whole cache lines, each is stored at once and leaves while the next is computed (two cores: 128 x
  // 200 to 8 x 4096 take 5 to 17% less, with gates 1 to 4%). Within the caches this is slower with a gate, so it is
  // left out there; gradients, which would lose 4% at 32 x 1024, do not do it.
  const bool streams = call.streams(), by_tile = call.whole_lines(out, t) && (streams || !gate.data);
  pass.begin(call.reader(sequence, args.x, args.pre_gate, t), call.tables + call.first_block(t));
  pass.each_segment([&](const Segment& segment) {
    pass.ahead = call.ahead(&sequence, segment, pass, t, {args.x, args.pre_gate, args.post_gate});
    auto put = [&](int64_t c, int64_t first, const Vec<A>(&y)[kTapRows]) __attribute__((always_inline)) {
      if (!by_tile) return pass.keep(c, first, y);
      auto tile = [&](Block b) { return b.data ? channel_block<A>(at(b, segment.from + first), c) : b; };
      store_tile<A>(tile(out), y, tile(gate), segment.rows - first, streams);
    };
    pass.run(segment, put);
    if (!by_tile) call.store(out, pass, gate, segment);
    if (!segment.last) pass.ascend(segment, false);
  });
  call.clear_padding_of(args.out, sequence, t);
}

template <class A>
void forward(const ConvArgs& args, ParallelFor parallel) {
  Call<A> call(args);
  call.build(parallel, call.num_groups);
  auto body = [](void* context, int64_t begin, int64_t end) {
    const Call<A>& call = *static_cast<const Call<A>*>(context);
    Pass<A> pass;
    Arena count;
    pass.take(count, *call.args.plan, call.tile_blocks, call.longest, true);
    Arena arena(count.used());
    pass.take(arena, *call.args.plan, call.tile_blocks, call.longest, true);
    for (int64_t item = begin; item < end; ++item) {
      int64_t group = item / call.tiles;
      call.enter(item % call.tiles);
      for (int64_t s = call.group_begin[group]; s < call.group_begin[group + 1]; ++s)
        forward_sequence<A>(call, pass, call.args.sequences[s], item % call.tiles);
    }
    end_streaming();
  };
  parallel(call.num_groups * call.tiles, body, &call);
}

}  // namespace hyenarec::HYENAREC_ISA
