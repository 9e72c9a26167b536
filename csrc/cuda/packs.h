// A few adjacent channels of a row, read and written by one access of up to 128 bits.
#pragma once
#include <cstring>

#include "device.h"

// A loop of a constant count, so that arrays that it indexes stay in registers.
#ifdef __CUDA_ARCH__
#define HYENAREC_UNROLL _Pragma("unroll")
#else
#define HYENAREC_UNROLL
#endif

namespace hyenarec::cuda {

// kCount values of T (Float32, Bfloat16 or Float16), as they lie in memory, in whole registers.
template <class T, int kCount>
struct alignas(kCount * sizeof(T)) Pack {
  static_assert(kCount * sizeof(T) % 4 == 0 && kCount * sizeof(T) <= 16);
  uint32_t words[kCount * sizeof(T) / 4];

  HYENAREC_DEVICE float get(int i) const {
    if constexpr (sizeof(T) == 4) {
      return bits_to_float(words[i]);
    } else {
      auto half = uint16_t(words[i / 2] >> i % 2 * 16);
      T value;
      memcpy(&value, &half, 2);
      return float(value);
    }
  }
  // Only in a pack that is zero; each value at most once.
  HYENAREC_DEVICE void set(int i, float value) {
    if constexpr (sizeof(T) == 4) {
      words[i] = float_to_bits(value);
    } else {
      T rounded = T::of(value);
      uint16_t half;
      memcpy(&half, &rounded, 2);
      words[i / 2] |= uint32_t(half) << i % 2 * 16;
    }
  }
};

// `left` channels lie between `at` and the end of the row; nothing past them is accessed. `aligned`: a whole pack lies
// there, at a multiple of its size.
template <class T, int kCount>
HYENAREC_DEVICE Pack<T, kCount> load(const T* at, int left, bool aligned) {
  using P = Pack<T, kCount>;
  P pack{};
#ifdef __CUDA_ARCH__
  if (aligned) return *reinterpret_cast<const P*>(at);
#else
  if (aligned) return memcpy(&pack, at, sizeof pack), pack;
#endif
  HYENAREC_UNROLL
  for (int c = 0; c < kCount; ++c)
    if (c < left) pack.set(c, float(at[c]));
  return pack;
}

template <class T, int kCount>
HYENAREC_DEVICE void store(T* at, const Pack<T, kCount>& pack, int left, bool aligned) {
  if (aligned) {
#ifdef __CUDA_ARCH__
    *reinterpret_cast<Pack<T, kCount>*>(at) = pack;
#else
    memcpy(at, &pack, sizeof pack);
#endif
    return;
  }
  HYENAREC_UNROLL
  for (int c = 0; c < kCount; ++c)
    if (c < left) at[c] = T::of(pack.get(c));
}

}  // namespace hyenarec::cuda
