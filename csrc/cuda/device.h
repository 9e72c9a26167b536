// What the kernels need from the machine. The same source is compiled by nvcc for the device and by a C++ compiler for
// the host, where tests run the shipped code without a GPU.
//
// A kernel is a *program*: a struct of parameters whose operator()(block, index, shared) runs one thread block. It is
// written as phases, `block.phase(f)`: f(thread) for every thread, then a barrier. Only shared and global memory keep
// their values from one phase to the next, so that a loop over threads on the host can run a program as a thread block
// does. `block.warps(f)` is a phase in which the threads of a warp work together (tensor_core.h).
#pragma once
#include <cmath>
#include <cstdint>
#include <utility>

#ifdef __CUDACC__
#include <cuda_fp16.h>
#define HYENAREC_DEVICE __host__ __device__ __forceinline__
#else
#define HYENAREC_DEVICE inline
#endif
#define HYENAREC_INLINE __attribute__((always_inline))  // for lambdas: calling one needs a stack for its captures
#ifdef __CUDA_ARCH__
#define HYENAREC_ONE_BY_ONE _Pragma("unroll 1")      // not unrolled: the body fills the registers
#define HYENAREC_SOME_AT_ONCE _Pragma("unroll 4")  // unrolled by 4: loads are issued together
#else
#define HYENAREC_ONE_BY_ONE
#define HYENAREC_SOME_AT_ONCE
#endif

namespace hyenarec::cuda {

// Whether a multiprocessor has only 100 KB of shared memory for all its blocks: compute capability 8.6, 8.9 and 12.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200)
constexpr bool kScarceShared = true;
#else
constexpr bool kScarceShared = false;
#endif

struct alignas(8) Complex {
  float x, y;
};
HYENAREC_DEVICE Complex operator+(Complex a, Complex b) { return {a.x + b.x, a.y + b.y}; }
HYENAREC_DEVICE Complex operator-(Complex a, Complex b) { return {a.x - b.x, a.y - b.y}; }
HYENAREC_DEVICE Complex operator*(Complex a, Complex b) { return {a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x}; }
HYENAREC_DEVICE Complex conj(Complex a) { return {a.x, -a.y}; }

// exp(i pi half_turns), also for exact multiples of 1/4, without range reduction through memory.
HYENAREC_DEVICE Complex unit(float half_turns) {
  Complex z;
#ifdef __CUDA_ARCH__
  sincospif(half_turns, &z.y, &z.x);
#else
  double angle = 3.14159265358979323846 * half_turns;
  z = {float(std::cos(angle)), float(std::sin(angle))};
#endif
  return z;
}

HYENAREC_DEVICE float bits_to_float(uint32_t bits) {
  float value;
#ifdef __CUDA_ARCH__
  value = __uint_as_float(bits);
#else
  __builtin_memcpy(&value, &bits, 4);
#endif
  return value;
}
HYENAREC_DEVICE uint32_t float_to_bits(float value) {
  uint32_t bits;
#ifdef __CUDA_ARCH__
  bits = __float_as_uint(value);
#else
  __builtin_memcpy(&bits, &value, 4);
#endif
  return bits;
}

// The 16-bit types as they lie in memory; values are rounded to nearest even.
struct Bfloat16 {
  uint16_t bits;
  HYENAREC_DEVICE operator float() const { return bits_to_float(uint32_t(bits) << 16); }
  static HYENAREC_DEVICE Bfloat16 of(float value) {
    uint32_t all = float_to_bits(value);
    return {uint16_t(value != value ? 0x7fff : (all + 0x7fff + (all >> 16 & 1)) >> 16)};
  }
};
struct Float16 {
#ifdef __CUDACC__
  __half value;
  HYENAREC_DEVICE operator float() const { return __half2float(value); }
  static HYENAREC_DEVICE Float16 of(float value) { return {__float2half_rn(value)}; }
#else
  _Float16 value;
  operator float() const { return float(value); }
  static Float16 of(float value) { return {_Float16(value)}; }
#endif
};
struct Float32 {
  float value;
  HYENAREC_DEVICE operator float() const { return value; }
  static HYENAREC_DEVICE Float32 of(float value) { return {value}; }
};

// Calls f(Index<0>), ..., f(Index<N - 1>): an unrolled loop whose counter is a constant, so that arrays stay in
// registers.
template <int I>
struct Index {
  static constexpr int value = I;
};
template <class F, int... I>
HYENAREC_DEVICE void each(F&& f, std::integer_sequence<int, I...>) {
  (f(Index<I>{}), ...);
}
template <int N, class F>
HYENAREC_DEVICE void each(F&& f) {
  each(f, std::make_integer_sequence<int, N>{});
}

// Bytes of shared memory that a program's block needs: a constant of its type, or what the program says.
template <class Program>
constexpr auto shared_bytes(const Program&) -> decltype(Program::kSharedBytes) {
  return Program::kSharedBytes;
}
template <class Program>
auto shared_bytes(const Program& program) -> decltype(program.shared_bytes()) {
  return program.shared_bytes();
}

HYENAREC_DEVICE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace hyenarec::cuda
