// The streaming step of a state in pages (hyenarec_kernels/nn/streaming.py, compact.py). An output is the sum of the
// taps over those rows of the present page that have arrived, and of what the page holds for the new row. The first
// event of a page fills it with what all earlier events add to its rows, so that the other steps read and write the
// page alone. With a compact state's levels, the full page is turned into moments first (256 users with horizons of
// 1,024 and 64 channels: 18 rows of each user per step, where sums and polynomials of every level, updated at every
// event, took 77). Without levels, it stays in a ring of inputs, all of which are read once per page and not at every
// event.
#pragma once
#include "sequences.h"

namespace hyenarec::HYENAREC_ISA {

// X channel blocks of one sequence, from channel c0 on. Where X is 1 the block may be partial, `valid` channels wide.
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

  // Rows or moments of the channels at hand.
  using Some = Vec<A>[kMaxPage * X];

  // Calls out(r, x, sum) for every row of the product of a matrix and `depth` rows of `in`.
  template <class Out>
  static void times(int64_t rows, Scalars<A> matrix, int64_t depth, const Some& in, const Out& out) {
    const Vec<A>* lanes[X];
    for (int x = 0; x < X; ++x) lanes[x] = in + x;
    multiply_rows<A, X>(rows, matrix, depth, lanes, X, out);
  }

  // Fills a page from the inputs themselves. It takes the place of the oldest page, whose last inputs may still be
  // needed.
  void begin_page(A* page) const {
    const int64_t inputs = args.taps - 1, first = steps - inputs;  // what the page's first row needs
    const A *ring = own(args.page), *taps = shared(args.near);
    for (int x = 0; x < X; ++x) {
      Vec<A> far[kRingPage] = {};
      int64_t t = first < 0 ? -first : 0, slot = (first + t) % args.slots;
      auto add = [&](auto rows) __attribute__((always_inline)) {  // adds input t to that many rows
        const Vec<A> u = load(ring + slot * channels, x);
        repeat<decltype(rows)::value>([&](auto i) __attribute__((always_inline)) {
          far[decltype(i)::value] += load(taps + (t - decltype(i)::value) * channels, x) * u;
        });
        if (++slot == args.slots) slot = 0;
      };
      for (; t < inputs && t + 1 < kRingPage; ++t) with_count<kRingPage>(t + 1, add);
      for (; t < inputs; ++t) add(Int<kRingPage>{});
      repeat<kRingPage>([&](auto i) { store(page + decltype(i)::value * channels, far[decltype(i)::value], x); });
    }
  }

  // Fills a page from moments.
  void begin_chunk(A* page) const {
    const int64_t rows = args.rows;
    Some far, entering, found;
    for (int64_t l = 0; l < args.num_levels; ++l) {
      const CompactLevel& level = args.levels[l];
      const int64_t rank = level.rank, past = (steps - rows) % level.chunk, now = steps % level.chunk;
      const A *basis = static_cast<const A*>(level.basis), *enter = shared(level.enter) + past * channels;
      A *sums = l ? own(level.sums) : nullptr, *incoming = l ? own(level.incoming) : nullptr;
      for (int64_t i = 0; i < rows; ++i)
        for (int x = 0; x < X; ++x)
          entering[i * X + x] = load(page + i * channels, x) * load(enter + i * channels, x);
      times(rank, {basis + past * rank, 1, rank}, rows, entering, [&](int64_t r, int x, Vec<A> sum) {
        found[r * X + x] = l ? load(sums + r * channels, x) + sum : sum;
      });
      if (now == 0) args.half_moments ? file<Bf16>(l, found) : file<A>(l, found);
      for (int64_t i = 0; l && i < rank * X; ++i) {
        const int64_t at = i / X * channels, x = i % X;
        store(sums + at, now ? found[i] : Vec<A>{}, x);
        now ? void(found[i] = load(incoming + at, x)) : store(incoming + at, found[i], x);
      }
      const A* leave = shared(level.leave) + now * channels;
      times(rows, {basis + now * rank, rank, 1}, rank, found, [&](int64_t i, int x, Vec<A> sum) {
        const Vec<A> adds = load(leave + i * channels, x) * sum;
        far[i * X + x] = l ? far[i * X + x] + adds : adds;
      });
    }
    for (int64_t i = 0; i < rows; ++i)
      for (int x = 0; x < X; ++x) store(page + i * channels, far[i * X + x], x);
  }

  // Stores the moments `found` of a chunk that has ended, and replaces them by what all finished chunks add to the
  // next.
  template <class M>  // M: the type of finished chunks' moments
  void file(int64_t l, Some& found) const {
    const CompactLevel& level = args.levels[l];
    const int64_t rank = level.rank, slots = level.slots, finished = steps / level.chunk - 1;
    const bool top = l + 1 == args.num_levels;
    M* moments = static_cast<M*>(level.moments.data) + sequence * level.moments.stride + c0;
    M* filed = moments + finished % slots * rank * channels;
    for (int64_t r = 0; r < rank; ++r)
      for (int x = 0; x < X; ++x) store(filed + r * channels, found[r * X + x], x);
    // Chunks before the parent are handled by the levels above; the top level reaches back as far as its slots.
    const int64_t inside = top ? finished + 1 : steps % args.levels[l + 1].chunk / level.chunk;
    const int64_t distances = inside < slots ? inside : slots;
    if (!top && inside == 0)
      for (int64_t row = 0; row < slots * rank; ++row)
        for (int x = 0; x < X; ++x) store(moments + row * channels, Vec<A>{}, x);
    for (int64_t r = 0; r < rank; ++r) {
      Vec<A> sum[2][X] = {};  // of even and odd moments: with X sums alone, additions would wait for each other
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
      for (int x = 0; x < X; ++x) found[r * X + x] = sum[0][x] + sum[1][x];
    }
  }

  void run() const {
    const Io<A>& io = io_of<A>(args.dtype);
    auto block = [&](Rows rows, int x) {
      return sequence_block(rows, {0, sequence, 1}, c0 + x * kWidth<A>, io.element_size);
    };
    const int64_t row = steps % args.rows;
    A* page = own(args.page) + (steps - row) % args.slots * channels;
    if (row == 0 && steps > 0) args.num_levels ? begin_chunk(page) : begin_page(page);
    const A* taps = shared(args.near) + (args.taps - 1 - row) * channels;  // the tap for the page's first row
    Vec<A> u[X], y[2][X] = {};
    for (int x = 0; x < X; ++x) io.load(&u[x], 0, block(args.x, x), block(args.pre_gate, x), 1, {1, valid});
    auto add = [&](Vec<A>* into, int64_t t) __attribute__((always_inline)) {
      for (int x = 0; x < X; ++x)
        into[x] += load(page + t * channels, x) * load(taps + t * channels, x);
    };
    int64_t t = 0;
    for (; t + 1 < row; t += 2) add(y[0], t), add(y[1], t + 1);
    if (t < row) add(y[0], t);
    A* here = page + row * channels;
    for (int x = 0; x < X; ++x) {
      Vec<A> out = y[0][x] + y[1][x] + (load(here, x) + u[x] * load(taps + row * channels, x));
      store(here, u[x], x);
      io.store(block(args.out, x), &out, 0, block(args.post_gate, x), 1, {1, valid});
    }
  }
};

template <class A>
void compact(const CompactArgs& args, ParallelFor parallel) {
  const int64_t values = args.taps;  // read per channel, at most
  each_channel_group<A>(args.num_sequences, args.channels, values, parallel,
                        [&args](auto count, int64_t sequence, int64_t c0, int64_t valid) {
                          CompactStep<A, decltype(count)::value>(args, sequence, c0, valid).run();
                        });
}

}  // namespace hyenarec::HYENAREC_ISA
