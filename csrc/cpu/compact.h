// One event more of each sequence whose past is a compact state (hyenarec_kernels/nn/compact.py): the taps of the present
// chunk over a ring of its rows, and for each level the local polynomials of what its finished chunks add. The first
// event of a chunk files the finished one's moments and works out what all of them add to the new one.
#pragma once
#include "sequences.h"

namespace hyenarec::HYENAREC_ISA {

// X channel blocks of one sequence from channel c0 on; the last may be partial, `valid` wide, where X is 1.
template <class A, int X>
struct CompactStep {
  const CompactArgs& args;
  const int64_t sequence, c0, valid, channels, steps;

  CompactStep(const CompactArgs& args, int64_t sequence, int64_t c0, int64_t valid)
      : args(args), sequence(sequence), c0(c0), valid(valid), channels(args.channels), steps(args.steps[sequence]) {}

  template <class T>
  HYENAREC_INLINE Vec<A> load(const T* p, int x = 0) const {
    p += x * kWidth<A>;
    return X > 1 || valid == kWidth<A> ? load_full<A>(p) : load_some<A>(p, valid);
  }
  template <class T>
  HYENAREC_INLINE void store(T* p, Vec<A> v, int x = 0) const {
    p += x * kWidth<A>;
    X > 1 || valid == kWidth<A> ? store_full<A>(p, v) : store_some<A>(p, v, valid);
  }
  A* own(const CompactArgs::Part& part) const { return static_cast<A*>(part.data) + sequence * part.stride + c0; }
  const A* shared(const void* table) const { return static_cast<const A*>(table) + c0; }

  void begin_chunk() const {
    const int64_t lowest = args.levels[0].chunk;
    if (steps <= 0 || steps % lowest) return;
    A* ring = own(args.recent);
    for (int64_t row = 0; row + 1 < lowest; ++row)
      for (int x = 0; x < X; ++x) store(ring + row * channels, Vec<A>{}, x);
    for (int64_t l = 0; l < args.num_levels && steps % args.levels[l].chunk == 0; ++l)
      args.half_moments ? begin_chunk_of<Bf16>(l) : begin_chunk_of<A>(l);
  }

  template <class M>  // moments of finished chunks are M
  void begin_chunk_of(int64_t l) const {
    const CompactLevel& level = args.levels[l];
    const int64_t rank = level.rank, slots = level.slots, finished = steps / level.chunk - 1;
    const bool top = l + 1 == args.num_levels;
    M* moments = static_cast<M*>(level.moments.data) + sequence * level.moments.stride + c0;
    A *sums = own(level.sums), *incoming = own(level.incoming);
    M* filed = moments + finished % slots * rank * channels;
    for (int64_t r = 0; r < rank; ++r)
      for (int x = 0; x < X; ++x) {
        store(filed + r * channels, load(sums + r * channels, x), x);
        store(sums + r * channels, Vec<A>{}, x);
      }
    // What lies before the parent is the levels' above; the top level reaches as far as its slots.
    const int64_t inside = top ? finished + 1 : steps % args.levels[l + 1].chunk / level.chunk;
    const int64_t distances = inside < slots ? inside : slots;
    if (!top && inside == 0)
      for (int64_t row = 0; row < slots * rank; ++row)
        for (int x = 0; x < X; ++x) store(moments + row * channels, Vec<A>{}, x);
    for (int64_t r = 0; r < rank; ++r) {
      Vec<A> sum[2][X] = {};  // of even and odd moments: X sums alone would wait for each other
      for (int64_t d = 0; d < distances; ++d) {
        const A* block = shared(level.blocks) + (d * rank + r) * rank * channels;
        const M* from = moments + (finished - d) % slots * rank * channels;
        auto add = [&](Vec<A>* into, int64_t s) __attribute__((always_inline)) {
          for (int x = 0; x < X; ++x) into[x] += load(block + s * channels, x) * load(from + s * channels, x);
        };
        int64_t s = 0;
        for (; s + 1 < rank; s += 2) add(sum[0], s), add(sum[1], s + 1);
        if (s < rank) add(sum[0], s);
      }
      for (int x = 0; x < X; ++x) store(incoming + r * channels, sum[0][x] + sum[1][x], x);
    }
  }

  void run() const {
    begin_chunk();
    const Io<A>& io = io_of<A>(args.dtype);
    auto block = [&](Rows rows, int x) {
      return sequence_block(rows, {0, sequence, 1}, c0 + x * kWidth<A>, io.element_size);
    };
    const int64_t lowest = args.levels[0].chunk, slots = lowest - 1, row = steps % lowest, slot = steps % slots;
    A* ring = own(args.recent);
    const A* taps = shared(args.near) + (slots - row) * channels;  // of the chunk's first row
    Vec<A> u[X], y[2][X] = {};
    for (int x = 0; x < X; ++x) io.load(&u[x], 0, block(args.x, x), block(args.pre_gate, x), 1, {1, valid});
    // The chunk's rows in order of memory: those that the ring's end cuts off come first.
    auto add = [&](const A* rows, const A* lags, int64_t count) __attribute__((always_inline)) {
      auto one = [&](Vec<A>* into, int64_t t) __attribute__((always_inline)) {
        for (int x = 0; x < X; ++x) into[x] += load(rows + t * channels, x) * load(lags + t * channels, x);
      };
      int64_t t = 0;
      for (; t + 1 < count; t += 2) one(y[0], t), one(y[1], t + 1);
      if (t < count) one(y[0], t);
    };
    const int64_t cut = row > slot ? row - slot : 0;
    add(ring + (slots - cut) * channels, taps, cut);
    add(ring + (slot - (row - cut)) * channels, taps + cut * channels, row - cut);
    for (int x = 0; x < X; ++x) {
      y[0][x] += u[x] * load(taps + row * channels, x);
      store(ring + slot * channels, u[x], x);
    }
    for (int64_t l = 0; l < args.num_levels; ++l) {
      const CompactLevel& level = args.levels[l];
      const int64_t at = steps % level.chunk;
      const A *basis = static_cast<const A*>(level.basis) + at * level.rank, *incoming = own(level.incoming);
      A* sums = own(level.sums);
      Vec<A> far[X] = {}, entering[X];
      for (int x = 0; x < X; ++x) entering[x] = load(shared(level.enter) + at * channels, x) * u[x];
      for (int64_t r = 0; r < level.rank; ++r)
        for (int x = 0; x < X; ++x) {
          far[x] += basis[r] * load(incoming + r * channels, x);
          store(sums + r * channels, load(sums + r * channels, x) + basis[r] * entering[x], x);
        }
      for (int x = 0; x < X; ++x) y[1][x] += load(shared(level.leave) + at * channels, x) * far[x];
    }
    for (int x = 0; x < X; ++x) {
      Vec<A> out = y[0][x] + y[1][x];
      io.store(block(args.out, x), &out, 0, block(args.post_gate, x), 1, {1, valid});
    }
  }
};

template <class A>
void compact(const CompactArgs& args, ParallelFor parallel) {
  constexpr int64_t kValues = 100;  // about, of a channel
  each_channel_group<A>(args.num_sequences, args.channels, kValues, parallel,
                        [&args](auto count, int64_t sequence, int64_t c0, int64_t valid) {
                          CompactStep<A, decltype(count)::value>(args, sequence, c0, valid).run();
                        });
}

}  // namespace hyenarec::HYENAREC_ISA
