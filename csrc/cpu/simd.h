// SIMD vectors of neighbouring channels. The same source is compiled once for each instruction set, in a namespace of
// its own, HYENAREC_ISA. It uses the compiler's vector extension; intrinsics serve only float16, AVX-512's reciprocal
// and stores that bypass the caches.
#pragma once
#include <cstdint>
#include <cstring>
#include <initializer_list>

#include "args.h"

#if defined(__AVX512F__)
#define HYENAREC_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define HYENAREC_VECTOR_BYTES 32
#else
#define HYENAREC_VECTOR_BYTES 16
#endif
#if defined(__SSE2__)
#include <immintrin.h>
#endif
#define HYENAREC_INLINE inline __attribute__((always_inline))
// For functions that several places call and that run long each time. Inlined everywhere, they make gcc take 77 s for
// AVX-512 instead of 43, and the kernels are no faster.
#define HYENAREC_SHARED __attribute__((noinline))

namespace hyenarec::HYENAREC_ISA {

template <class A>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(HYENAREC_VECTOR_BYTES), may_alias));
  typedef int32_t bits __attribute__((vector_size(HYENAREC_VECTOR_BYTES), may_alias));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(HYENAREC_VECTOR_BYTES), may_alias));
  typedef int64_t bits __attribute__((vector_size(HYENAREC_VECTOR_BYTES), may_alias));
};
// As many 16-bit values as a vector holds floats.
typedef uint16_t Halves __attribute__((vector_size(HYENAREC_VECTOR_BYTES / 2), may_alias));
template <class A>
using Vec = typename VectorOf<A>::type;
template <class A>
constexpr int64_t kWidth = HYENAREC_VECTOR_BYTES / sizeof(A);
constexpr bool kWholeLines = HYENAREC_VECTOR_BYTES == 64;  // a vector is a cache line

// kRows: rows of a register tile of 4 lanes (micro.h). 32 registers hold 6 x 4 sums, where loads stay below half of the
// multiply-adds; 16 registers hold 2 x 4. kTapRows: rows of a tile of the direct part, which also keeps as many taps in
// registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRows = 6, kTapRows = 8;
#else
constexpr int kRows = 2, kTapRows = 4;
#endif
constexpr int kTapPad = 2 * kTapRows;
constexpr int kLanes = 4;

template <class A>
HYENAREC_INLINE Vec<A> splat(A value) {
  return value - Vec<A>{};
}

struct Bf16 { uint16_t bits; };
struct F16 { uint16_t bits; };

HYENAREC_INLINE float from_bits(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
HYENAREC_INLINE uint32_t to_bits(float f) { uint32_t bits; memcpy(&bits, &f, 4); return bits; }

HYENAREC_INLINE float widen(float v) { return v; }
HYENAREC_INLINE double widen(double v) { return v; }
HYENAREC_INLINE float widen(Bf16 v) { return from_bits(uint32_t(v.bits) << 16); }
HYENAREC_INLINE float widen(F16 v) {
  // Subnormals are converted from their integer value, so that no float32 subnormal occurs; Inf and NaN keep their
  // mantissa.
  uint32_t sign = uint32_t(v.bits & 0x8000) << 16, half = v.bits & 0x7fff, rest = half << 13;
  float value = half < 0x400    ? float(half) * 0x1p-24f
                : half < 0x7c00 ? from_bits(rest + 0x38000000)
                                : from_bits(rest | 0x7f800000);
  return from_bits(to_bits(value) | sign);
}

HYENAREC_INLINE void narrow(float v, float& out) { out = v; }
HYENAREC_INLINE void narrow(double v, double& out) { out = v; }
HYENAREC_INLINE void narrow(float v, Bf16& out) {
  uint32_t bits = to_bits(v);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest even
  out.bits = uint16_t((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded);
}
HYENAREC_INLINE void narrow(float v, F16& out) {
  uint32_t bits = to_bits(v), sign = (bits >> 16) & 0x8000, rest = bits & 0x7fffffff;
  uint32_t half;
  if (rest > 0x7f800000) half = 0x7e00;                       // NaN
  else if (rest >= 0x477ff000) half = 0x7c00;                 // rounds to 65536 or more: Inf
  else if (rest < 0x38800000) half = to_bits(from_bits(rest) + 0.5f) - 0x3f000000;  // subnormal: the addition rounds
  else half = (rest - 0x38000000 + 0xfff + ((rest >> 13) & 1)) >> 13;
  out.bits = uint16_t(sign | half);
}

// bfloat16 is converted in vectors of integers. Compilers turn loops over elements, as in the functions above, into
// shuffles: dropout with GELU of 8M elements on two cores took 12.7 ms with those, and takes 4.8 ms (float32: 4.0).
HYENAREC_INLINE Vec<float> widen(Halves v) {
  using I = VectorOf<float>::bits;
  return (Vec<float>)(__builtin_convertvector(v, I) << 16);
}
HYENAREC_INLINE Halves narrow_to_bf16(Vec<float> v) {
  typedef uint32_t Bits __attribute__((vector_size(HYENAREC_VECTOR_BYTES), may_alias));
  Bits bits = (Bits)v, rounded = bits + 0x7fff + ((bits >> 16) & 1);
  return __builtin_convertvector((v == v ? rounded : bits | 0x400000) >> 16, Halves);
}

// Loads and stores of whole vectors. float16 uses the machine's own conversion instruction where there is one.
template <class A, class T>
HYENAREC_INLINE Vec<A> load_full(const T* p) {
  Vec<A> v;
  if constexpr (sizeof(T) == sizeof(A)) {
    memcpy(&v, p, sizeof v);
  } else {
#if defined(__AVX512F__)
    if constexpr (sizeof(A) == 4 && __is_same(T, F16))
      return (Vec<A>)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__F16C__)
    if constexpr (sizeof(A) == 4 && __is_same(T, F16))
      return (Vec<A>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#endif
    if constexpr (sizeof(A) == 4 && __is_same(T, Bf16)) {
      Halves halves;
      memcpy(&halves, p, sizeof halves);
      return widen(halves);
    }
    A lanes[kWidth<A>];
    for (int c = 0; c < kWidth<A>; ++c) lanes[c] = widen(p[c]);
    memcpy(&v, lanes, sizeof v);
  }
  return v;
}

template <class A, class T>
HYENAREC_INLINE void store_full(T* p, Vec<A> v) {
  if constexpr (sizeof(T) == sizeof(A)) {
    memcpy(p, &v, sizeof v);
  } else {
#if defined(__AVX512F__)
    if constexpr (sizeof(A) == 4 && __is_same(T, F16))
      return _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, 0));
#elif defined(__F16C__)
    if constexpr (sizeof(A) == 4 && __is_same(T, F16))
      return _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, 0));
#endif
    if constexpr (sizeof(A) == 4 && __is_same(T, Bf16)) {
      Halves halves = narrow_to_bf16(v);
      memcpy(p, &halves, sizeof halves);
      return;
    }
    A lanes[kWidth<A>];
    memcpy(lanes, &v, sizeof v);
    for (int c = 0; c < kWidth<A>; ++c) narrow(lanes[c], p[c]);
  }
}

// Stores a whole vector to an aligned address, bypassing the caches where the machine has such a store.
template <class A>
HYENAREC_INLINE void stream_full(A* p, Vec<A> v) {
#if defined(__AVX512F__)
  _mm512_stream_si512((__m512i*)p, (__m512i)v);
#elif defined(__AVX2__)
  _mm256_stream_si256((__m256i*)p, (__m256i)v);
#elif defined(__SSE2__)
  _mm_stream_si128((__m128i*)p, (__m128i)v);
#else
  store_full<A>(p, v);
#endif
}
inline void end_streaming() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// exp(-z) of X vectors side by side, which hides latency: each is a chain of dependent instructions, 50 cycles long.
template <int X>
inline void exp_negative(Vec<double>* e, const Vec<double>* z) {
  for (int x = 0; x < X; ++x)
    for (int c = 0; c < kWidth<double>; ++c) e[x][c] = __builtin_exp(-z[x][c]);
}

// exp(-z) as 2^y = 2^n 2^r, where y = -z log2(e) = n + r and n is an integer; |z| is clamped to 87, and NaN becomes
// some number. 2^r comes from the minimax polynomial of degree 5 on [-1/2, 1/2] (relative error 8e-8), 2^n from the
// exponent bits.
template <int X>
HYENAREC_INLINE void exp_negative(Vec<float>* e, const Vec<float>* z) {
  using V = Vec<float>;
  using I = VectorOf<float>::bits;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  V r[X], n[X], p[X];
  for (int x = 0; x < X; ++x) r[x] = z[x] < splat(87.0f) ? z[x] : splat(87.0f);
  for (int x = 0; x < X; ++x) r[x] = r[x] > splat(-87.0f) ? r[x] : splat(-87.0f);
  for (int x = 0; x < X; ++x) n[x] = r[x] * -1.44269504f + magic;
  for (int x = 0; x < X; ++x) r[x] = r[x] * -1.44269504f - (n[x] - magic);
  for (int x = 0; x < X; ++x) p[x] = splat(0x1.5c08e4p-10f);
  for (float c : {0x1.3d0c52p-7f, 0x1.c6b6e4p-5f, 0x1.ebf918p-3f, 0x1.62e428p-1f, 0x1.000002p+0f})
    for (int x = 0; x < X; ++x) p[x] = p[x] * r[x] + c;
  for (int x = 0; x < X; ++x) e[x] = (V)((I)p[x] + ((I)n[x] << 23));
}

// 1 / v for normal v, off by at most a last bit or two. Where the machine has an approximation to 14 bits, one Newton
// step refines it (a division of 16 floats takes 16 cycles). The step is not written as r + r (1 - v r): for v above
// 1e34 that product is subnormal, and so its digits would be lost.
HYENAREC_INLINE Vec<double> reciprocal(Vec<double> v) { return 1.0 / v; }
HYENAREC_INLINE Vec<float> reciprocal(Vec<float> v) {
#if defined(__AVX512F__)
  Vec<float> r = (Vec<float>)_mm512_maskz_rcp14_ps(0xffff, (__m512)v);  // gcc warns of the unmasked form
  return r * (2.0f - v * r);
#else
  return 1.0f / v;
#endif
}

// The first `valid` channels only, for the last channel block where kWidth does not divide D; the others read as 0.
template <class A, class T>
HYENAREC_INLINE Vec<A> load_some(const T* p, int64_t valid) {
  A lanes[kWidth<A>] = {};
  for (int64_t c = 0; c < valid; ++c) lanes[c] = widen(p[c]);
  return load_full<A>(lanes);
}

template <class A, class T>
HYENAREC_INLINE void store_some(T* p, Vec<A> v, int64_t valid) {
  for (int64_t c = 0; c < valid; ++c) narrow(v[c], p[c]);
}

// Those of either kind.
template <class A>
HYENAREC_INLINE Vec<A> load_valid(const A* p, int64_t valid) {
  return valid == kWidth<A> ? load_full<A>(p) : load_some<A>(p, valid);
}
template <class A>
HYENAREC_INLINE void store_valid(A* p, Vec<A> v, int64_t valid) {
  valid == kWidth<A> ? store_full<A>(p, v) : store_some<A>(p, v, valid);
}

}  // namespace hyenarec::HYENAREC_ISA
