// Matrix products of a warp on tensor cores, and the same source on the host.
//
// Inside `block.warps(f)` the lanes of a warp work together: f(warp) is called by each of the 32 lanes on the device
// and once per warp on the host; a barrier follows. A value that every lane holds in registers is a `PerLane<T>`: one T
// on the device, all 32 on the host, so that a value in the wrong lane shows on the host too. `warp.lanes(f)` runs
// f(lane) for each lane; what one lane writes to shared memory, others may read after `warp.sync()`.
//
//     block.warps([&](const Warp& warp) {
//       PerLane<Accumulator> c{};
//       for (...) {
//         PerLane<Words<4>> a = load_matrices<false>(warp, [&](int lane) { return row of lane; });
//         TensorCore<Bfloat16>::multiply(c, a, b);  // c += a b
//       }
//       warp.lanes([&](int lane) { ... c[lane].value[i] ... });
//     });
//
// Registers of a lane (PTX, mma.m16n8k16 and m16n8k8), with g = lane / 4 and q = lane % 4; a word of 16-bit values
// holds two neighbours, the lower in its low half:
//
//                16-bit types, A (16, 16), B (16, 8)         TF32, A (16, 8), B (8, 8)
//     A word w   row g + 8 (w % 2), columns 2q + 8 (w / 2)   row g + 8 (w % 2), column q + 4 (w / 2)
//     B word w   rows 2q + 8 w, column g                     row q + 4 w, column g
//     C value v  row g + 8 (v / 2), column 2q + v % 2, of (16, 8) in both
#pragma once
#include <type_traits>

#include "device.h"

namespace hyenarec::cuda {

template <int N>
struct Words {
  uint32_t word[N];
};
struct Accumulator {
  float value[4];
};

template <class T>
struct PerLane {
#ifdef __CUDA_ARCH__
  T own;
  __device__ __forceinline__ T& operator[](int) { return own; }
  __device__ __forceinline__ const T& operator[](int) const { return own; }
#else
  T all[32];
  HYENAREC_DEVICE T& operator[](int lane) { return all[lane]; }
  HYENAREC_DEVICE const T& operator[](int lane) const { return all[lane]; }
#endif
};

struct Warp {
  int number, lane;  // in the block; on the host the lane has no meaning

  template <class F>
  HYENAREC_DEVICE void lanes(const F& f) const {
#ifdef __CUDA_ARCH__
    f(lane);
#else
    for (int i = 0; i < 32; ++i) f(i);
#endif
  }

  // The same warp, which the compiler takes for another one. What depends on the lane is then computed here, and does
  // not take registers all through the surrounding loop.
  HYENAREC_DEVICE Warp anew() const {
    Warp warp = *this;
#ifdef __CUDA_ARCH__
    asm volatile("" : "+r"(warp.lane));
#endif
    return warp;
  }

  HYENAREC_DEVICE void sync() const {
#ifdef __CUDA_ARCH__
    __syncwarp();
#endif
  }

  // Each lane gets `value` of lane `source(lane)`.
  template <class F>
  HYENAREC_DEVICE PerLane<float> shuffle(const PerLane<float>& value, const F& source) const {
    PerLane<float> result;
#ifdef __CUDA_ARCH__
    result.own = __shfl_sync(0xffffffffu, value.own, source(lane));
#else
    for (int i = 0; i < 32; ++i) result[i] = value[source(i)];
#endif
    return result;
  }
};

// Four 8 x 8 matrices of 16-bit values from shared memory (ldmatrix.x4). Lane 8 m + i gives the address of row i of
// matrix m: 16 bytes, aligned to 16. Word m of lane 4 g + q receives columns 2q and 2q + 1 of row g of matrix m;
// transposed, rows 2q and 2q + 1 of column g. A row may also be four 32-bit values: word m then receives column q of
// row g.
template <bool kTransposed, class F>
HYENAREC_DEVICE PerLane<Words<4>> load_matrices(const Warp& warp, const F& row) {
  PerLane<Words<4>> result;
#ifdef __CUDA_ARCH__
  uint32_t address = uint32_t(__cvta_generic_to_shared(row(warp.lane)));
  uint32_t(&w)[4] = result.own.word;
  if constexpr (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
                 : "r"(address)
                 : "memory");
#else
  for (int m = 0; m < 4; ++m) {
    uint16_t matrix[8][8];
    for (int i = 0; i < 8; ++i) __builtin_memcpy(matrix[i], row(8 * m + i), 16);
    for (int lane = 0; lane < 32; ++lane) {
      int g = lane / 4, q = lane % 4;
      uint16_t low = kTransposed ? matrix[2 * q][g] : matrix[g][2 * q];
      uint16_t high = kTransposed ? matrix[2 * q + 1][g] : matrix[g][2 * q + 1];
      result[lane].word[m] = low | uint32_t(high) << 16;
    }
  }
#endif
  return result;
}

// packed: two values, rounded to nearest even, in one word, `low` in its low half. unpacked: the value of either half.
template <class T>
HYENAREC_DEVICE uint32_t packed(float low, float high) {
#ifdef __CUDA_ARCH__
  uint32_t word;
  if constexpr (std::is_same_v<T, Bfloat16>)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#else
  T values[2] = {T::of(low), T::of(high)};
  uint32_t word;
  __builtin_memcpy(&word, values, 4);
  return word;
#endif
}
template <class T>
HYENAREC_DEVICE float unpacked(uint32_t word, int half) {
  uint16_t bits = uint16_t(half ? word >> 16 : word);
  T value;
  __builtin_memcpy(&value, &bits, 2);
  return float(value);
}

// leading: the leading 11 bits of a float, which are all that a TF32 product reads of it. trailing: the rest.
HYENAREC_DEVICE uint32_t leading(uint32_t bits) { return bits & 0xffffe000u; }
HYENAREC_DEVICE uint32_t trailing(uint32_t bits) {
  return float_to_bits(bits_to_float(bits) - bits_to_float(leading(bits)));
}

namespace on_host {

// c += a b, from every lane's words, of kInWord values each, at the places in the table above.
template <int kInWord, class Value>
HYENAREC_DEVICE void multiply(PerLane<Accumulator>& c, const PerLane<Words<4>>& a, const PerLane<Words<2>>& b,
                              const Value& value) {
  constexpr int kDepth = 8 * kInWord, kHalf = kDepth / 2;
  float left[16][kDepth], right[kDepth][8];
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < kInWord; ++i) {
      int g = lane / 4, k = kInWord * (lane % 4) + i;
      for (int w = 0; w < 4; ++w) left[g + 8 * (w % 2)][k + kHalf * (w / 2)] = value(a[lane].word[w], i);
      for (int w = 0; w < 2; ++w) right[k + kHalf * w][g] = value(b[lane].word[w], i);
    }
  for (int lane = 0; lane < 32; ++lane)
    for (int v = 0; v < 4; ++v) {
      int row = lane / 4 + 8 * (v / 2), column = 2 * (lane % 4) + v % 2;
      float sum = c[lane].value[v];
      for (int k = 0; k < kDepth; ++k) sum += left[row][k] * right[k][column];
      c[lane].value[v] = sum;
    }
}

}  // namespace on_host

// c (16, 8) += a (16, 8) b (8, 8) in TF32, of the leading bits of floats.
HYENAREC_DEVICE void multiply_tf32(PerLane<Accumulator>& c, const PerLane<Words<4>>& a, const PerLane<Words<2>>& b) {
#ifdef __CUDA_ARCH__
  float(&v)[4] = c.own.value;
  const uint32_t(&x)[4] = a.own.word, (&y)[2] = b.own.word;
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(v[0]), "+f"(v[1]), "+f"(v[2]), "+f"(v[3])
      : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));
#else
  on_host::multiply<1>(c, a, b, [](uint32_t word, int) { return bits_to_float(leading(word)); });
#endif
}

// c += a b for matrices of type T, summed in float32. For 16-bit types a is (16, 16) and b (16, 8). For Float32 a is
// (16, 8) and b (8, 8), and the product is made of three TF32 products, small parts first; it keeps 21 of the 24 bits.
template <class T>
struct TensorCore {
  static constexpr int kInWord = 2, kDepth = 16;  // values in a word; columns of a

  static HYENAREC_DEVICE void multiply(PerLane<Accumulator>& c, const PerLane<Words<4>>& a,
                                       const PerLane<Words<2>>& b) {
#ifdef __CUDA_ARCH__
    float(&v)[4] = c.own.value;
    const uint32_t(&x)[4] = a.own.word, (&y)[2] = b.own.word;
    if constexpr (std::is_same_v<T, Bfloat16>)
      asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
          "{%0, %1, %2, %3};"
          : "+f"(v[0]), "+f"(v[1]), "+f"(v[2]), "+f"(v[3])
          : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));
    else
      asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
          "{%0, %1, %2, %3};"
          : "+f"(v[0]), "+f"(v[1]), "+f"(v[2]), "+f"(v[3])
          : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));
#else
    on_host::multiply<2>(c, a, b, [](uint32_t word, int half) { return unpacked<T>(word, half); });
#endif
  }
};

template <>
struct TensorCore<Float32> {
  static constexpr int kInWord = 1, kDepth = 8;

  static HYENAREC_DEVICE void multiply(PerLane<Accumulator>& c, const PerLane<Words<4>>& a,
                                       const PerLane<Words<2>>& b) {
    auto rest_a = parts<4>(a, trailing), top_a = parts<4>(a, leading);
    auto rest_b = parts<2>(b, trailing), top_b = parts<2>(b, leading);
    multiply_tf32(c, rest_a, top_b);
    multiply_tf32(c, top_a, rest_b);
    multiply_tf32(c, top_a, top_b);
  }

 private:
  template <int N, class Part>
  static HYENAREC_DEVICE PerLane<Words<N>> parts(const PerLane<Words<N>>& words, const Part& part) {
    PerLane<Words<N>> result;
#ifdef __CUDA_ARCH__
    each<N>([&](auto w) { result.own.word[w.value] = part(words.own.word[w.value]); });
#else
    for (int lane = 0; lane < 32; ++lane)
      for (int w = 0; w < N; ++w) result[lane].word[w] = part(words[lane].word[w]);
#endif
    return result;
  }
};

}  // namespace hyenarec::cuda
