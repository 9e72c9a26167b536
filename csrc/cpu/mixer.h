// One event more of each sequence through a whole mixer: both projections, the short convolution between, gates, and the
// steps of the long convolutions. Between them each sequence has one row of scratch: the gates, then the values.
#pragma once
#include "compact.h"
#include "scratch.h"
#include "short_conv.h"
#include "step.h"

namespace hyenarec::HYENAREC_ISA {

// A matrix as whole vectors of columns; the last ones are filled up with zeros.
template <class A>
struct VectorMatrix {
  const Vec<A>* data;
  int64_t rows, columns, vectors;  // vectors of a row
};

// As it lies where that is in whole aligned vectors, otherwise copied to `room`.
template <class A>
VectorMatrix<A> vectors_of(const MixerArgs::Matrix& m, int64_t rows, int64_t columns, Vec<A>* room) {
  const int64_t vectors = ceil_div(columns, kWidth<A>);
  const A* from = static_cast<const A*>(m.data);
  const bool whole = columns % kWidth<A> == 0 && uintptr_t(from) % sizeof(Vec<A>) == 0;
  if (whole && m.column_stride == 1 && m.row_stride == columns)
    return {reinterpret_cast<const Vec<A>*>(from), rows, columns, vectors};
  for (int64_t v = 0; v < vectors; ++v) {
    const int64_t valid = columns - v * kWidth<A> < kWidth<A> ? columns - v * kWidth<A> : kWidth<A>;
    for (int64_t r = 0; r < rows; ++r) {
      const A* p = from + r * m.row_stride + v * kWidth<A> * m.column_stride;
      Vec<A> values{};
      for (int64_t c = 0; c < valid; ++c) values[c] = p[c * m.column_stride];
      room[r * vectors + v] = values;
    }
  }
  return {room, rows, columns, vectors};
}

// out(row, column, valid, product) for every vector of `count` rows times a matrix.
template <class A, class Out>
void times(const A* rows, int64_t stride, int64_t count, const VectorMatrix<A>& matrix, const Out& out) {
  for (int64_t v = 0; v < matrix.vectors; v += kLanes)
    with_count<kLanes>(matrix.vectors - v, [&](auto lanes) __attribute__((always_inline)) {
      constexpr int X = decltype(lanes)::value;
      const Vec<A>* in[X];
      for (int x = 0; x < X; ++x) in[x] = matrix.data + v + x;
      multiply_rows<A, X>(count, {rows, stride, 1}, matrix.rows, in, matrix.vectors, [&](int64_t r, int x, Vec<A> sum) {
        const int64_t c = (v + x) * kWidth<A>, left = matrix.columns - c;
        out(r, c, left < kWidth<A> ? left : kWidth<A>, sum);
      });
    });
}

template <class A>
struct MixerCall {
  const MixerArgs& args;
  const int64_t channels = (args.gates + 1) * args.dim, values = args.gates * args.dim;
  A* z;  // (num_sequences, channels)
  VectorMatrix<A> w_in, w_out;

  MixerCall(const MixerArgs& args, A* z, Vec<A>* w_in, Vec<A>* w_out)
      : args(args), z(z), w_in(vectors_of<A>(args.w_in, args.width, channels, w_in)),
        w_out(vectors_of<A>(args.w_out, args.dim, args.dim, w_out)) {}

  Rows part(int64_t channel) const { return {z + channel, 0, channels}; }

  static Vec<A> load(const A* p, int64_t valid) {
    return valid == kWidth<A> ? load_full<A>(p) : load_some<A>(p, valid);
  }
  static void store(A* p, Vec<A> v, int64_t valid) {
    valid == kWidth<A> ? store_full<A>(p, v) : store_some<A>(p, v, valid);
  }

  // Up to the gates, for sequences [begin, end).
  void read(int64_t begin, int64_t end) const {
    const A* x = static_cast<const A*>(args.x.data) + begin * args.x.row_stride;
    const A *taps = static_cast<const A*>(args.short_taps), *bias = static_cast<const A*>(args.short_bias);
    const int64_t slots = args.short_width - 1;
    times<A>(x, args.x.row_stride, end - begin, w_in, [&](int64_t row, int64_t c, int64_t valid, Vec<A> projected) {
      const int64_t sequence = begin + row;
      A* ring = static_cast<A*>(args.projected.data) + sequence * args.projected.stride + c;
      Vec<A> y = load(bias + c, valid) + projected * load(taps + slots * channels + c, valid);
      if (slots) {
        int64_t slot = args.steps[sequence] % slots;
        if (slot < 0) slot += slots;  // as torch's remainder
        A* oldest = ring + slot * channels;
        for (int64_t lag = slots, at = slot; lag > 0; --lag) {
          y += load(ring + at * channels, valid) * load(taps + (slots - lag) * channels + c, valid);
          if (++at == slots) at = 0;
        }
        store(oldest, projected, valid);
      }
      store(z + sequence * channels + c, y, valid);
    });
    if (args.gate == Gate::sigmoid || args.gate == Gate::silu)
      for (int64_t sequence = begin; sequence < end; ++sequence) activate(z + sequence * channels + values - args.dim);
    if (args.filters == 0 && args.gates)
      for (int64_t sequence = begin; sequence < end; ++sequence)
        for (int64_t d = 0; d < args.dim; ++d) z[sequence * channels + values + d] *= z[sequence * channels + d];
  }

  void activate(A* gate) const {
    constexpr int64_t kMany = kSideBySide * kWidth<A>;
    for (int64_t d = 0; d < args.dim; d += kMany) {
      Vec<A> in[kSideBySide], out[kSideBySide];
      auto each = [&](auto&& run) {
        for (int64_t x = 0; x < kSideBySide && d + x * kWidth<A> < args.dim; ++x) {
          const int64_t at = d + x * kWidth<A>, left = args.dim - at;
          run(gate + at, left < kWidth<A> ? left : kWidth<A>, x);
        }
      };
      for (Vec<A>& v : in) v = Vec<A>{};
      each([&](A* p, int64_t valid, int64_t x) { in[x] = load(p, valid); });
      sigmoid<A>(out, in);
      const bool silu = args.gate == Gate::silu;
      each([&](A* p, int64_t valid, int64_t x) {
        Vec<A> gate = in[x] == in[x] ? out[x] : in[x];  // of NaN the sigmoid is some number
        store(p, silu ? in[x] * gate : gate, valid);
      });
    }
  }

  // From the values on, for sequences [begin, end).
  void write(int64_t begin, int64_t end) const {
    A* out = static_cast<A*>(args.out.data) + begin * args.out.row_stride;
    times<A>(z + begin * channels + values, channels, end - begin, w_out,
             [&](int64_t row, int64_t c, int64_t valid, Vec<A> v) { store(out + row * args.out.row_stride + c, v, valid); });
    for (int64_t sequence = begin; sequence < end; ++sequence) ++args.steps[sequence];
  }

  template <class Args>
  Args with_rows(Args step, int64_t filter) const {
    step.x = step.out = part(values);
    if (args.gates) step.pre_gate = part(filter * args.dim);
    if (args.gates && filter + 1 == args.filters) step.post_gate = part(values - args.dim);
    return step;
  }
};

template <class A>
void mixer(const MixerArgs& args, ParallelFor parallel) {
  const int64_t channels = (args.gates + 1) * args.dim;
  Vec<A>*w_in, *w_out;
  A* z;
  auto layout = [&](Arena& arena) {
    w_in = arena.take<Vec<A>>(args.width * ceil_div(channels, kWidth<A>));
    w_out = arena.take<Vec<A>>(args.dim * ceil_div(args.dim, kWidth<A>));
    z = arena.take<A>(args.num_sequences * channels);
  };
  Arena count;
  layout(count);
  Arena arena(count.used());
  layout(arena);
  const MixerCall<A> call(args, z, w_in, w_out);
  auto divided = [&](int64_t multiplications, Body body) {
    // Waking a second thread costs as much as 400,000 multiply-adds of a matrix product.
    if (args.num_sequences * multiplications < 400000) body(const_cast<MixerCall<A>*>(&call), 0, args.num_sequences);
    else parallel(args.num_sequences, body, const_cast<MixerCall<A>*>(&call));
  };
  divided(args.width * channels, [](void* self, int64_t begin, int64_t end) {
    static_cast<const MixerCall<A>*>(self)->read(begin, end);
  });
  for (int64_t i = 0; i < args.filters; ++i)
    args.is_compact ? compact<A>(call.with_rows(args.compact[i], i), parallel)
                    : step<A>(call.with_rows(args.exact[i], i), parallel);
  divided(args.dim * args.dim, [](void* self, int64_t begin, int64_t end) {
    static_cast<const MixerCall<A>*>(self)->write(begin, end);
  });
}

}  // namespace hyenarec::HYENAREC_ISA
