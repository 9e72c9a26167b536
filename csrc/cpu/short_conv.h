// The short depthwise convolution with bias and SiLU, forward and backward, in one pass over memory each. Blocks of 64
// rows go through all channel blocks in turn, so that whole rows are read while they are in the cache.
#pragma once
#include <initializer_list>

#include "forward.h"

namespace hyenarec::HYENAREC_ISA {

inline Vec<double> exponential(Vec<double> x) {
  for (int c = 0; c < kWidth<double>; ++c) x[c] = __builtin_exp(x[c]);
  return x;
}

// exp to 1 unit in the last place: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2].
HYENAREC_INLINE Vec<float> exponential(Vec<float> x) {
  using V = Vec<float>;
  using I = VectorOf<float>::bits;
  x = x > splat(88.0f) ? splat(88.0f) : x;
  x = x < splat(-87.0f) ? splat(-87.0f) : x;
  const V magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  V shifted = x * 1.44269504f + magic, n = shifted - magic;
  V r = x - n * 0.693359375f + n * 2.12194440e-4f;
  V p = splat(1.0f / 720);
  for (float c : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = p * r + c;
  I bits = (I)p + ((I)shifted << 23);
  return (V)bits;
}

template <class A>
HYENAREC_INLINE Vec<A> sigmoid(Vec<A> z) {
  return splat(A(1)) / (splat(A(1)) + exponential(-z));
}

constexpr int64_t kShortRows = 64, kUnitRows = 512, kShortParts = 16;

// Rows [begin, end) of a sequence.
struct Unit {
  int64_t sequence, begin, end;
};

template <class A, class T, int W>
struct ShortConv {
  const ShortConvArgs& args;
  int64_t width() const { return W ? W : args.width; }

  HYENAREC_INLINE Vec<A> load(Block b, int64_t i, int64_t valid) const {
    const T* p = row<A, T>(b, i);
    return valid < kWidth<A> ? load_some<A>(p, valid) : load_full<A>(p);
  }
  HYENAREC_INLINE void store(Block b, int64_t i, Vec<A> v, int64_t valid) const {
    T* p = const_cast<T*>(row<A, T>(b, i));
    valid < kWidth<A> ? store_some<A>(p, v, valid) : store_full<A>(p, v);
  }
  Block block(Rows rows, const Sequence& sequence, int64_t c0) const {
    return sequence_block(rows, sequence, c0, sizeof(T), 0);
  }
  Vec<A> weight(int64_t j, int64_t c0) const { return load_channels<A>(args.weight, j, args.channels, c0); }

  // z[t] from a window of x that ends at row t: window[j] = x[t - j].
  HYENAREC_INLINE Vec<A> preactivation(const Vec<A>* w, const Vec<A>* window, Vec<A> bias) const {
    Vec<A> z = bias;
    for (int64_t j = 0; j < width(); ++j) z += w[j] * window[j];
    return z;
  }
  HYENAREC_INLINE void slide(Vec<A>* window, Vec<A> next) const {
    for (int64_t j = width() - 1; j > 0; --j) window[j] = window[j - 1];
    window[0] = next;
  }
  // window[j] = x[begin - 1 - j], zero before the sequence
  HYENAREC_INLINE void enter(Vec<A>* window, Block x, int64_t begin, int64_t valid) const {
    for (int64_t j = 0; j < width(); ++j) window[j] = begin - 1 - j >= 0 ? load(x, begin - 1 - j, valid) : Vec<A>{};
  }

  void forward(const Sequence& sequence, int64_t begin, int64_t end, int64_t c0, int64_t valid, Vec<A>* room) const {
    Vec<A> fixed[2 * (W ? W : 1)], *w = W ? fixed : room, *window = w + width();
    for (int64_t j = 0; j < width(); ++j) w[j] = weight(j, c0);
    Vec<A> bias = args.bias ? load_channels<A>(args.bias, 0, args.channels, c0) : Vec<A>{};
    Block x = block(args.x, sequence, c0), out = block(args.out, sequence, c0);
    enter(window, x, begin, valid);
    for (int64_t t = begin; t < end; ++t) {
      slide(window, load(x, t, valid));
      Vec<A> z = preactivation(w, window, bias);
      store(out, t, args.silu ? z * sigmoid<A>(z) : z, valid);
    }
  }

  // dx of rows [begin, end), and what they add to dweight and dbias (sums[width]). dz of the width - 1 rows that follow
  // is computed again by the next block.
  void backward(const Sequence& sequence, int64_t begin, int64_t end, int64_t c0, int64_t valid, Vec<A>* sums,
                Vec<A>* room) const {
    Vec<A> fixed[4 * (W ? W : 1)], *w = W ? fixed : room, *window = w + width(), *dz = window + width();
    Vec<A>* dw = dz + width();
    Vec<A> bias = args.bias ? load_channels<A>(args.bias, 0, args.channels, c0) : Vec<A>{}, dbias{};
    for (int64_t j = 0; j < width(); ++j) w[j] = weight(j, c0), dz[j] = dw[j] = Vec<A>{};
    Block x = block(args.x, sequence, c0), grad = block(args.grad, sequence, c0), dx = block(args.dx, sequence, c0);
    enter(window, x, begin, valid);
    for (int64_t t = begin; t < end + width() - 1; ++t) {
      Vec<A> d{};
      if (t < sequence.length) {
        slide(window, load(x, t, valid));
        d = load(grad, t, valid);
        if (args.silu) {
          Vec<A> z = preactivation(w, window, bias), s = sigmoid<A>(z);
          d *= s * (splat(A(1)) + z * (splat(A(1)) - s));
        }
        if (t < end) {
          dbias += d;
          for (int64_t j = 0; j < width(); ++j) dw[j] += d * window[j];
        }
      }
      slide(dz, d);  // dz[j] = gradient at row t - j
      if (dx.data && t - width() + 1 >= begin) {
        Vec<A> sum{};
        for (int64_t j = 0; j < width(); ++j) sum += w[j] * dz[width() - 1 - j];
        store(dx, t - width() + 1, sum, valid);
      }
    }
    for (int64_t j = 0; j < width(); ++j) sums[j] += dw[j];
    sums[width()] += dbias;
  }
};

template <class A, class T, int W>
struct ShortConvCall {
  ShortConv<A, T, W> conv;
  int64_t channel_blocks, units, parts;
  Arena arena;
  Unit* unit;
  Vec<A>* sums;  // (parts, channel_blocks, width + 1)

  static int64_t count_units(const ShortConvArgs& args) {
    int64_t units = 0;
    for (int64_t s = 0; s < args.num_sequences; ++s) units += ceil_div(args.sequences[s].length, kUnitRows) + (args.sequences[s].length == 0);
    return units;
  }
  int64_t part_sums() const { return channel_blocks * (conv.width() + 1); }

  ShortConvCall(const ShortConvArgs& args, bool backward)
      : conv{args},
        channel_blocks(ceil_div(args.channels, kWidth<A>)),
        units(count_units(args)),
        parts(units < kShortParts ? units : kShortParts),
        arena(units * int64_t(sizeof(Unit)) + 64 + (backward ? parts * part_sums() * int64_t(sizeof(Vec<A>)) : 0)),
        unit(arena.template take<Unit>(units)),
        sums(arena.template take<Vec<A>>(0)) {
    int64_t n = 0;
    for (int64_t s = 0; s < args.num_sequences; ++s) {
      int64_t length = args.sequences[s].length, begin = 0;
      do {
        int64_t end = begin + kUnitRows < length ? begin + kUnitRows : length;
        unit[n++] = {s, begin, end};
        begin = end;
      } while (begin < length);
    }
  }

  void run(int64_t part, bool backward) const {
    const ShortConvArgs& args = conv.args;
    Arena room_arena((4 * conv.width() + 1) * int64_t(sizeof(Vec<A>)));
    Vec<A>* room = room_arena.take<Vec<A>>(4 * conv.width());
    Vec<A>* mine = sums + part * part_sums();
    if (backward) memset((void*)mine, 0, part_sums() * sizeof(Vec<A>));
    for (int64_t n = part * units / parts; n < (part + 1) * units / parts; ++n) {
      const Sequence& sequence = args.sequences[unit[n].sequence];
      for (int64_t begin = unit[n].begin; begin < unit[n].end; begin += kShortRows) {
        int64_t end = begin + kShortRows < unit[n].end ? begin + kShortRows : unit[n].end;
        for (int64_t b = 0; b < channel_blocks; ++b) {
          int64_t c0 = b * kWidth<A>, valid = args.channels - c0 < kWidth<A> ? args.channels - c0 : kWidth<A>;
          if (backward) conv.backward(sequence, begin, end, c0, valid, mine + b * (conv.width() + 1), room);
          else conv.forward(sequence, begin, end, c0, valid, room);
        }
      }
      if (unit[n].begin == 0) clear(backward ? args.dx : args.out, sequence);
    }
  }
  void clear(Rows rows, const Sequence& sequence) const {
    const ShortConvArgs& args = conv.args;
    if (!rows.data || args.padded_length == 0) return;
    Block block = sequence_block(rows, {sequence.batch, 0, args.padded_length}, 0, sizeof(T), 0);
    int64_t end = sequence.start + sequence.length, bytes = args.channels * int64_t(sizeof(T));
    clear_rows(block, sequence.start, bytes);
    clear_rows(at(block, end), args.padded_length - end, bytes);
  }
  void finish() const {
    const ShortConvArgs& args = conv.args;
    for (int64_t b = 0; b < channel_blocks; ++b) {
      int64_t c0 = b * kWidth<A>, valid = args.channels - c0 < kWidth<A> ? args.channels - c0 : kWidth<A>;
      for (int64_t j = 0; j <= conv.width(); ++j) {
        Vec<A> total{};
        for (int64_t part = 0; part < parts; ++part) total += sums[part * part_sums() + b * (conv.width() + 1) + j];
        void* out = j < conv.width() ? args.dweight : args.dbias;
        int64_t at = j < conv.width() ? j * args.channels + c0 : c0;
        if (out) store_some<A>(static_cast<A*>(out) + at, total, valid);
      }
    }
  }
};

template <class A, class T, int W>
void short_conv(const ShortConvArgs& args, bool backward, ParallelFor parallel) {
  ShortConvCall<A, T, W> call(args, backward);
  auto forward_body = [](void* self, int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) static_cast<ShortConvCall<A, T, W>*>(self)->run(part, false);
  };
  auto backward_body = [](void* self, int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) static_cast<ShortConvCall<A, T, W>*>(self)->run(part, true);
  };
  parallel(call.parts, backward ? Body(backward_body) : Body(forward_body), &call);
  if (backward) call.finish();
}

template <class A, class T>
void short_conv_of_width(const ShortConvArgs& args, bool backward, ParallelFor parallel) {
  switch (args.width) {
    case 3: return short_conv<A, T, 3>(args, backward, parallel);
    case 4: return short_conv<A, T, 4>(args, backward, parallel);
    default: return short_conv<A, T, 0>(args, backward, parallel);
  }
}

inline void short_conv_of_type(const ShortConvArgs& args, bool backward, ParallelFor parallel) {
  switch (args.dtype) {
    case Dtype::f32: return short_conv_of_width<float, float>(args, backward, parallel);
    case Dtype::f64: return short_conv_of_width<double, double>(args, backward, parallel);
    case Dtype::bf16: return short_conv_of_width<float, Bf16>(args, backward, parallel);
    case Dtype::f16: return short_conv_of_width<float, F16>(args, backward, parallel);
  }
}

}  // namespace hyenarec::HYENAREC_ISA
