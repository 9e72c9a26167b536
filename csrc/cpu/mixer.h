// The streaming step of a whole mixer: the first projection, the short convolution, the gates, the steps of the long
// convolutions and the last projection. Between them each sequence has one row of scratch: the gates, then the values.
#pragma once
#include <memory>

#include "compact.h"
#include "scratch.h"
#include "short_conv.h"
#include "step.h"

namespace hyenarec::HYENAREC_ISA {

// A matrix whose rows are whole vectors of columns, which need not be aligned; the last vector is filled up with zeros.
template <class A>
struct WholeVectors {
  const A* data;
  int64_t rows, columns, stride;  // elements between rows
};

// The matrix itself where its rows are whole vectors already; otherwise a copy, in memory that `room` owns.
template <class A>
WholeVectors<A> whole_vectors(const MixerArgs::Matrix& m, int64_t rows, int64_t columns, std::unique_ptr<Arena>& room) {
  const A* from = static_cast<const A*>(m.data);
  if (columns % kWidth<A> == 0 && m.column_stride == 1) return {from, rows, columns, m.row_stride};
  const int64_t stride = ceil_div(columns, kWidth<A>) * kWidth<A>;
  room = std::make_unique<Arena>(rows * stride * int64_t(sizeof(A)));
  A* to = room->template base<A>();
  for (int64_t first = 0; first < stride; first += kWidth<A>) {
    const int64_t valid = columns - first < kWidth<A> ? columns - first : kWidth<A>;
    for (int64_t r = 0; r < rows; ++r) {
      Vec<A> values{};
      for (int64_t c = 0; c < valid; ++c) values[c] = from[r * m.row_stride + (first + c) * m.column_stride];
      store_full<A>(to + r * stride + first, values);
    }
  }
  return {to, rows, columns, stride};
}

// Calls out(row, column, valid, product) for every vector of the product of `count` rows and a matrix.
template <class A, class Out>
void times(const A* rows, int64_t row_stride, int64_t count, const WholeVectors<A>& matrix, const Out& out) {
  constexpr int64_t kMany = kLanes * kWidth<A>;
  for (int64_t c0 = 0; c0 < matrix.columns; c0 += kMany)
    with_count<kLanes>(ceil_div(matrix.columns - c0, kWidth<A>), [&](auto lanes) __attribute__((always_inline)) {
      constexpr int X = decltype(lanes)::value;
      for (int64_t r0 = 0; r0 < count; r0 += kRows)
        with_count<kRows>(count - r0, [&](auto tile) __attribute__((always_inline)) {
          constexpr int R = decltype(tile)::value;
          const A* left = rows + r0 * row_stride;
          Vec<A> sum[R][X] = {};
          for (int64_t k = 0; k < matrix.rows; ++k) {
            Vec<A> v[X];
            for (int x = 0; x < X; ++x) v[x] = load_full<A>(matrix.data + k * matrix.stride + c0 + x * kWidth<A>);
            for (int r = 0; r < R; ++r)
              for (int x = 0; x < X; ++x) sum[r][x] += splat(left[r * row_stride + k]) * v[x];
          }
          for (int r = 0; r < R; ++r)
            for (int x = 0; x < X; ++x) {
              const int64_t c = c0 + x * kWidth<A>, valid = matrix.columns - c;
              out(r0 + r, c, valid < kWidth<A> ? valid : kWidth<A>, sum[r][x]);
            }
        });
    });
}

template <class A>
struct MixerCall {
  static constexpr int64_t kSmall = 4096 / sizeof(A);
  const MixerArgs& args;
  const int64_t channels = (args.num_gates + 1) * args.dim, values = args.num_gates * args.dim;
  std::unique_ptr<Arena> rooms[3];
  A small[kSmall];  // for one sequence: allocating memory takes as long as the work in it
  A* z = small;     // (num_sequences, channels)
  WholeVectors<A> w_in, w_out;

  explicit MixerCall(const MixerArgs& args)
      : args(args), w_in(whole_vectors<A>(args.w_in, args.width, channels, rooms[0])),
        w_out(whole_vectors<A>(args.w_out, args.dim, args.dim, rooms[1])) {
    const int64_t values = args.num_sequences * channels;
    if (values <= kSmall) return;
    rooms[2] = std::make_unique<Arena>(values * int64_t(sizeof(A)));
    z = rooms[2]->template base<A>();
  }

  Rows part(int64_t channel) const { return {z + channel, 0, channels}; }

  // From the input to the gates, for sequences [begin, end).
  void read(int64_t begin, int64_t end) const {
    const A* x = static_cast<const A*>(args.x.data) + begin * args.x.row_stride;
    const A *taps = static_cast<const A*>(args.short_taps), *bias = static_cast<const A*>(args.short_bias);
    const int64_t slots = args.short_width - 1;
    times<A>(x, args.x.row_stride, end - begin, w_in, [&](int64_t row, int64_t c, int64_t valid, Vec<A> projected) {
      const int64_t sequence = begin + row;
      A* ring = static_cast<A*>(args.projected.data) + sequence * args.projected.stride + c;
      Vec<A> y = load_valid<A>(bias + c, valid) + projected * load_valid<A>(taps + slots * channels + c, valid);
      if (slots) {
        int64_t slot = args.steps[sequence] % slots;
        if (slot < 0) slot += slots;  // never negative, as torch's remainder
        A* oldest = ring + slot * channels;
        for (int64_t lag = slots, at = slot; lag > 0; --lag) {
          y += load_valid<A>(ring + at * channels, valid) * load_valid<A>(taps + (slots - lag) * channels + c, valid);
          if (++at == slots) at = 0;
        }
        store_valid<A>(oldest, projected, valid);
      }
      store_valid<A>(z + sequence * channels + c, y, valid);
    });
    if (args.gate == Gate::sigmoid || args.gate == Gate::silu)
      for (int64_t sequence = begin; sequence < end; ++sequence) activate(z + sequence * channels + values - args.dim);
    if (args.filters == 0 && args.num_gates)
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
      each([&](A* p, int64_t valid, int64_t x) { in[x] = load_valid<A>(p, valid); });
      sigmoid<A>(out, in);
      const bool silu = args.gate == Gate::silu;
      each([&](A* p, int64_t valid, int64_t x) {
        Vec<A> gate = in[x] == in[x] ? out[x] : in[x];  // the sigmoid of NaN is some number
        store_valid<A>(p, silu ? in[x] * gate : gate, valid);
      });
    }
  }

  // From the values to the output, for sequences [begin, end).
  void write(int64_t begin, int64_t end) const {
    A* out = static_cast<A*>(args.out.data) + begin * args.out.row_stride;
    times<A>(z + begin * channels + values, channels, end - begin, w_out,
             [&](int64_t row, int64_t c, int64_t valid, Vec<A> v) {
               store_valid<A>(out + row * args.out.row_stride + c, v, valid);
             });
    for (int64_t sequence = begin; sequence < end; ++sequence) ++args.steps[sequence];
  }

  template <class Args>
  Args with_rows(Args step, int64_t filter) const {
    step.x = step.out = part(values);
    if (args.num_gates) step.pre_gate = part(filter * args.dim);
    if (args.num_gates && filter + 1 == args.filters) step.post_gate = part(values - args.dim);
    return step;
  }
};

// Runs `part` of a call for all sequences, each of which takes so many multiplications.
template <auto part, class Call>
void each_sequence(const Call& call, int64_t multiplications, ParallelFor parallel) {
  const int64_t count = call.args.num_sequences;
  auto body = [](void* self, int64_t begin, int64_t end) { (static_cast<const Call*>(self)->*part)(begin, end); };
  void* self = const_cast<Call*>(&call);
  // Waking a second thread costs as much as 400,000 multiply-adds of a matrix product.
  if (count * multiplications < 400000) body(self, 0, count);
  else parallel(count, body, self);
}

template <class A>
void mixer(const MixerArgs& args, ParallelFor parallel) {
  using Call = MixerCall<A>;
  Call call(args);
  each_sequence<&Call::read>(call, args.width * call.channels, parallel);
  for (int64_t i = 0; i < args.filters; ++i)
    args.is_compact ? compact<A>(call.with_rows(args.compact[i], i), parallel)
                    : step<A>(call.with_rows(args.exact[i], i), parallel);
  each_sequence<&Call::write>(call, args.dim * args.dim, parallel);
}

}  // namespace hyenarec::HYENAREC_ISA
