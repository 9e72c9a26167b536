// The streaming step of a pre-norm block: x + mixer(norm(x)), and to that the feed-forward (GELU) of its norm. It is
// one call, because torch takes long between calls: two blocks of 64 channels in a package take 57 us in parts, and 40
// with one call a block.
#pragma once
#include "dropout.h"
#include "mixer.h"

namespace hyenarec::HYENAREC_ISA {

template <class A>
struct BlockCall {
  static constexpr int64_t kSmall = 4096 / sizeof(A);
  const MixerArgs& args;
  const BlockArgs& around;
  MixerArgs inner = args;
  std::unique_ptr<Arena> rooms[3];
  A small[kSmall];   // for one sequence, as in MixerCall
  A* normed = small; // (num_sequences, dim)
  A* hidden;         // (num_sequences, hidden)
  WholeVectors<A> up, down;

  BlockCall(const MixerArgs& args, const BlockArgs& around)
      : args(args), around(around), up(whole_vectors<A>(around.up, args.dim, around.hidden, rooms[0])),
        down(whole_vectors<A>(around.down, around.hidden, args.dim, rooms[1])) {
    const int64_t values = args.num_sequences * (args.dim + around.hidden);
    if (values > kSmall) {
      rooms[2] = std::make_unique<Arena>(values * int64_t(sizeof(A)));
      normed = rooms[2]->template base<A>();
    }
    hidden = normed + args.num_sequences * args.dim;
    inner.x = {normed, 0, args.dim};
  }

  // Calls run(first, valid) for every vector of `count` values.
  template <class Run>
  static void vectors(int64_t count, const Run& run) {
    for (int64_t d = 0; d < count; d += kWidth<A>) run(d, count - d < kWidth<A> ? count - d : kWidth<A>);
  }
  static A total(Vec<A> v) {
    A sum = 0;
    for (int c = 0; c < kWidth<A>; ++c) sum += v[c];
    return sum;
  }

  void normalise(const A* x, BlockArgs::Norm norm, A* out) const {
    const A *weight = static_cast<const A*>(norm.weight), *bias = static_cast<const A*>(norm.bias);
    Vec<A> sum{}, squares{};
    vectors(args.dim, [&](int64_t d, int64_t valid) { sum += load_valid<A>(x + d, valid); });
    const A mean = total(sum) / A(args.dim);
    vectors(args.dim, [&](int64_t d, int64_t valid) {
      Vec<A> v = load_valid<A>(x + d, valid) - mean;
      for (int64_t c = valid; c < kWidth<A>; ++c) v[c] = 0;
      squares += v * v;
    });
    const A scale = A(1) / A(__builtin_sqrt(total(squares) / A(args.dim) + A(around.eps)));
    vectors(args.dim, [&](int64_t d, int64_t valid) {
      const Vec<A> unit = (load_valid<A>(x + d, valid) - mean) * scale;
      store_valid<A>(out + d, unit * load_valid<A>(weight + d, valid) + load_valid<A>(bias + d, valid), valid);
    });
  }

  const A* row(int64_t sequence) const { return static_cast<const A*>(args.x.data) + sequence * args.x.row_stride; }

  // What the mixer reads, for sequences [begin, end).
  void before_mixer(int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; ++i) normalise(row(i), around.before_mixer, normed + i * args.dim);
  }

  // From the mixer's output, which it replaces, to the block's, for sequences [begin, end).
  void after_mixer(int64_t begin, int64_t end) const {
    A* const out = static_cast<A*>(args.out.data);
    const int64_t stride = args.out.row_stride;
    const A *up_bias = static_cast<const A*>(around.up_bias), *down_bias = static_cast<const A*>(around.down_bias);
    for (int64_t i = begin; i < end; ++i) {
      A* y = out + i * stride;
      vectors(args.dim, [&](int64_t d, int64_t valid) {
        store_valid<A>(y + d, load_valid<A>(row(i) + d, valid) + load_valid<A>(y + d, valid), valid);
      });
      normalise(y, around.before_feed_forward, normed + i * args.dim);
    }
    times<A>(normed + begin * args.dim, args.dim, end - begin, up, [&](int64_t r, int64_t c, int64_t valid, Vec<A> v) {
      store_valid<A>(hidden + (begin + r) * around.hidden + c, v + load_valid<A>(up_bias + c, valid), valid);
    });
    vectors((end - begin) * around.hidden, [&](int64_t i, int64_t valid) {
      A* p = hidden + begin * around.hidden + i;
      Vec<A> v = load_valid<A>(p, valid), below, density;
      normal(v, below, density);
      store_valid<A>(p, v * below, valid);
    });
    times<A>(hidden + begin * around.hidden, around.hidden, end - begin, down,
             [&](int64_t r, int64_t c, int64_t valid, Vec<A> v) {
               A* y = out + (begin + r) * stride + c;
               store_valid<A>(y, load_valid<A>(y, valid) + (v + load_valid<A>(down_bias + c, valid)), valid);
             });
  }
};

template <class A>
void block(const MixerArgs& args, const BlockArgs& around, ParallelFor parallel) {
  using Call = BlockCall<A>;
  Call call(args, around);
  each_sequence<&Call::before_mixer>(call, 10 * args.dim, parallel);
  mixer<A>(call.inner, parallel);
  each_sequence<&Call::after_mixer>(call, 2 * args.dim * around.hidden, parallel);
}

}  // namespace hyenarec::HYENAREC_ISA
