// Backward. The same pass, over the time-reversed output gradient, gives du. Two passes side by side, over u and over
// the output gradient, give the rest, segment by segment: y for the post-gate, correlations of the two for the sampled
// taps, and outer products of their moments for the blocks. So no gradient of K taps exists; skip is a part of the tap
// at lag 0. Sums over sequences are split by the call's groups and added in order: the same bits for any number of
// threads.
#pragma once
#include "correlate.h"
#include "forward.h"
#include "sums.h"

namespace hyenarec::HYENAREC_ISA {

template <class A>
struct BackwardCall : Call<A> {
  using Call<A>::args, Call<A>::channel_blocks, Call<A>::table_size, Call<A>::num_groups, Call<A>::rows;
  int64_t parts;
  Arena arena;
  Vec<A>* sums;  // (parts, channel_blocks): the totals of the tables' gradients

  // As many parts as fit in a tenth of x, so that scratch stays small beside the input.
  explicit BackwardCall(const ConvArgs& a)
      : Call<A>(a),
        parts(count_parts()),
        arena(parts * channel_blocks * total_size() * int64_t(sizeof(Vec<A>))),
        sums(arena.template take<Vec<A>>(parts * channel_blocks * total_size())) {}
  int64_t total_size() const { return LongSums<A>::vectors(table_size); }
  int64_t count_parts() const {
    int64_t fit = rows / (20 * table_size), least = num_groups < 2 ? 1 : 2;
    return fit < least ? least : fit < num_groups ? fit : num_groups;
  }
  Vec<A>* sum(int64_t part, int64_t block) const { return sums + (part * channel_blocks + block) * total_size(); }
  bool wants_du() const { return args.dx.data || args.dpre_gate.data; }
  bool wants_taps() const { return args.dfilter || args.drate || args.dskip; }
};

template <class A>
struct BackwardPasses {
  Pass<A> u, dy;
  Vec<A>* recent;  // (tile_blocks, table_size): gradients of the tables from the latest rows

  void take(Arena& arena, const BackwardCall<A>& call) {
    u.take(arena, *call.args.plan, call.tile_blocks, call.longest, false);
    dy.take(arena, *call.args.plan, call.tile_blocks, call.longest, true);
    recent = arena.take<Vec<A>>(call.tile_blocks * call.table_size);
  }
};

// dx = (du + skip dy) pre_gate and dpre_gate = (du + skip dy) x, with du from the reversed pass.
template <class A>
void input_gradients(const BackwardCall<A>& call, Pass<A>& pass, const Sequence& sequence, int64_t t) {
  const ConvArgs& args = call.args;
  auto block = [&](Rows rows) { return call.block(sequence, rows, t, true); };
  Block dx = block(args.dx), dpre = block(args.dpre_gate), pre = block(args.pre_gate), x = block(args.x);
  pass.begin(call.reader(sequence, args.grad, args.post_gate, t, true), call.tables + call.first_block(t));
  pass.each_segment([&](const Segment& segment) {
    pass.run(segment);
    call.store(dx, pass, pre, segment);
    call.store(dpre, pass, x, segment);
    if (!segment.last) pass.ascend(segment, false);
  });
}

// Adds the gradients of one segment's taps, and of the blocks of those nodes that are complete with this segment.
template <class A>
void table_gradients(const Plan& plan, const Pass<A>& u, Pass<A>& dy, const Segment& segment,
                     const Tables<A>* sums) {
  auto ask = [&]() __attribute__((always_inline)) { dy.ask_ahead(); };
  for (int64_t c = 0; c < u.reader.tile.blocks; ++c)
    for (int64_t x = 0; x < segment.chunks; ++x) {
      int64_t first = x * plan.chunk, used = u.used_rows(segment, x);
      const Vec<A>*grad = dy.u + c * dy.stride() + first, *input = u.u + c * u.stride() + first;
      correlate_near<A>(sums[c].near, plan.near_taps, grad, input, ceil_div(used, kTapRows) * kTapRows, ask);
      if (u.reaches(segment))
        correlate_far<A>(sums[c].far - plan.far_lag, plan.horizon, u.chunk_history(), grad, u.past(c, first), used);
    }
  int64_t end = segment.chunk + segment.chunks;
  for (int l = 0; l < plan.num_levels; ++l) {
    int64_t done = ceil_div(end, u.ratio(l)), begin = (done - 1) / kLanes * kLanes;
    if (!segment.last && (end % u.ratio(l) || done % kLanes)) break;  // nodes are taken kLanes at a time
    with_count<kLanes>(done - begin, [&](auto lanes) {
      for (int64_t c = 0; c < u.reader.tile.blocks; ++c)
        correlate_nodes<A, decltype(lanes)::value>(plan.levels[l], dy.mu[l], u.mu[l], c, begin, sums[c].blocks[l]);
    });
  }
}

// The gradients of a tile's tables.
template <class A>
struct TableSums {
  int64_t blocks;
  Tables<A> recent[kTileBlocks];
  LongSums<A> sums[kTileBlocks];

  // Collecting moves six tables through memory, so large tables are collected less often.
  TableSums(const BackwardCall<A>& call, int64_t part, int64_t t, Vec<A>* room) : blocks(call.tile(t).blocks) {
    const int64_t size = call.table_size, every = 4 * size > 4096 ? 4 * size : 4096;
    memset((void*)room, 0, blocks * size * sizeof(Vec<A>));
    for (int64_t c = 0; c < blocks; ++c) {
      recent[c] = Tables<A>(*call.args.plan, room + c * size);
      sums[c] = {room + c * size, call.sum(part, call.first_block(t) + c), size, every};
    }
  }
  void after(int64_t rows) {
    for (int64_t c = 0; c < blocks; ++c) sums[c].after(rows);
  }
  void collect() {
    for (int64_t c = 0; c < blocks; ++c) sums[c].collect();
  }
};

// dpost_gate = grad * (conv(u) + skip u), and the gradients of the tables.
template <class A>
void output_side(const BackwardCall<A>& call, Pass<A>& u, Pass<A>& dy, const Sequence& sequence, int64_t t,
                 TableSums<A>& sums) {
  const ConvArgs& args = call.args;
  Block dpost = call.block(sequence, args.dpost_gate, t), grad = call.block(sequence, args.grad, t);
  const Tables<A>* tables = call.tables + call.first_block(t);
  u.begin(call.reader(sequence, args.x, args.pre_gate, t), tables);
  dy.begin(call.reader(sequence, args.grad, args.post_gate, t), tables, true);
  // With levels there are too few register tiles to spread the prefetches of four tensors over (32 x 1024: 2% more
  // time).
  const bool asks = args.plan->num_levels == 0;
  u.each_segment([&](const Segment& segment) {
    if (asks) {
      u.ahead = call.ahead(&sequence, segment, u, t, {args.x, args.pre_gate});
      dy.ahead = call.ahead(&sequence, segment, dy, t, {args.grad, args.post_gate});
    }
    if (dpost.data) {
      u.run(segment);
      call.store(dpost, u, grad, segment);
    } else {
      u.read(segment);
      u.read_history(segment);
      u.all_moments(segment);
    }
    if (!segment.last) u.ascend(segment, false);
    if (!call.wants_taps()) return;
    dy.read(segment);
    dy.all_moments(segment);
    dy.ascend(segment, segment.last);
    table_gradients<A>(*args.plan, u, dy, segment, sums.recent);
    sums.after(segment.rows);
  });
}

template <class A>
void backward_part(const BackwardCall<A>& call, BackwardPasses<A>& passes, int64_t part, int64_t t) {
  const ConvArgs& args = call.args;
  TableSums<A> sums(call, part, t, passes.recent);
  int64_t first = part * call.num_groups / call.parts, last = (part + 1) * call.num_groups / call.parts;
  for (int64_t s = call.group_begin[first]; s < call.group_begin[last]; ++s) {
    const Sequence& sequence = args.sequences[s];
    if (args.dpost_gate.data || call.wants_taps()) output_side<A>(call, passes.u, passes.dy, sequence, t, sums);
    if (call.wants_du()) input_gradients<A>(call, passes.dy, sequence, t);
    for (Rows rows : {args.dx, args.dpre_gate, args.dpost_gate}) call.clear_padding_of(rows, sequence, t);
  }
  if (call.wants_taps()) sums.collect();
}

// Adds up the parts and takes the tables' gradients back to the filter.
template <class A>
void finish_gradients(const BackwardCall<A>& call, int64_t block) {
  const ConvArgs& args = call.args;
  Vec<A>* total = call.sum(0, block);
  for (int64_t part = 1; part < call.parts; ++part)
    LongSums<A>::add_part(total, call.sum(part, block), call.table_size);
  LongSums<A>::finish(total, call.table_size);
  int64_t c0 = block * kWidth<A>, valid = args.channels - c0 < kWidth<A> ? args.channels - c0 : kWidth<A>;
  Tables<A> tables(*args.plan, total);
  if (args.dskip) store_some<A>(static_cast<A*>(args.dskip) + c0, tables.near[0], valid);
  if (!args.dfilter && !args.drate) return;
  const int64_t samples = args.plan->num_samples;
  Arena room((args.terms + 2 * samples) * int64_t(sizeof(Vec<A>)));
  Vec<A>* gradient = room.base<Vec<A>>();
  values_gradient<A>(*args.plan, tables, gradient);
  if (args.rate) damp<A>(*args.plan, load_channels<A>(args.rate, 0, args.channels, c0), gradient);
  if (args.dfilter) filter_gradient<A>(args, gradient, c0);
  if (!args.drate) return;
  // d/d rate of exp(-rate lag) p(lag) is the filter -lag p(lag) with the same window.
  const Vec<A>* values = filter_values<A>(args, c0, gradient + samples);
  Vec<A> drate{};
  for (int64_t q = 0; q < samples; ++q) drate -= values[q] * gradient[q] * static_cast<const A*>(args.plan->lags)[q];
  store_some<A>(static_cast<A*>(args.drate) + c0, drate, valid);
}

template <class A>
void backward(const ConvArgs& args, ParallelFor parallel) {
  BackwardCall<A> call(args);
  call.build(parallel, call.parts);
  auto body = [](void* context, int64_t begin, int64_t end) {
    const BackwardCall<A>& call = *static_cast<const BackwardCall<A>*>(context);
    BackwardPasses<A> passes;
    Arena count;
    passes.take(count, call);
    Arena arena(count.used());
    passes.take(arena, call);
    for (int64_t item = begin; item < end; ++item) {
      int64_t t = item % call.tiles, first = call.first_block(t);
      call.enter(t);
      backward_part<A>(call, passes, item / call.tiles, t);
      if (call.parts > 1 || !call.wants_taps()) continue;
      for (int64_t block = first; block < first + call.tile(t).blocks; ++block) finish_gradients<A>(call, block);
    }
    end_streaming();
  };
  parallel(call.parts * call.tiles, body, &call);
  if (call.parts == 1 || !call.wants_taps()) return;
  auto finish = [](void* context, int64_t begin, int64_t end) {
    const BackwardCall<A>& call = *static_cast<const BackwardCall<A>*>(context);
    for (int64_t block = begin; block < end; ++block) finish_gradients<A>(call, block);
  };
  parallel(call.channel_blocks, finish, &call);
}

}  // namespace hyenarec::HYENAREC_ISA
