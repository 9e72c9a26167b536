// Between rows of a tensor in memory and contiguous vectors of one channel block in arithmetic type.
#pragma once
#include "simd.h"

namespace hyenarec::HYENAREC_ISA {

// A channel block of one sequence of a tensor; null data stands for an absent operand.
struct Block {
  char* data;
  int64_t stride;  // bytes between rows
};

template <class A>
struct Io {
  // dst[i] = a[i] (* b[i]), i < rows
  void (*load)(Vec<A>* dst, Block a, Block b, int64_t rows, int64_t valid);
  // dst[i] = src[i] (* b[i])
  void (*store)(Block dst, const Vec<A>* src, Block b, int64_t rows, int64_t valid);
  int64_t element_size;
};

template <class A, class T>
HYENAREC_INLINE const T* row(Block b, int64_t i) {
  return reinterpret_cast<const T*>(b.data + i * b.stride);
}

template <class A, class T>
void load_rows(Vec<A>* dst, Block a, Block b, int64_t rows, int64_t valid) {
  if (valid < kWidth<A>) {
    for (int64_t i = 0; i < rows; ++i) {
      dst[i] = load_some<A>(row<A, T>(a, i), valid);
      if (b.data) dst[i] *= load_some<A>(row<A, T>(b, i), valid);
    }
  } else if (b.data) {
    for (int64_t i = 0; i < rows; ++i) dst[i] = load_full<A>(row<A, T>(a, i)) * load_full<A>(row<A, T>(b, i));
  } else {
    for (int64_t i = 0; i < rows; ++i) dst[i] = load_full<A>(row<A, T>(a, i));
  }
}

template <class A, class T>
void store_rows(Block dst, const Vec<A>* src, Block b, int64_t rows, int64_t valid) {
  auto at = [&](int64_t i) { return const_cast<T*>(row<A, T>(dst, i)); };
  if (valid < kWidth<A>) {
    for (int64_t i = 0; i < rows; ++i)
      store_some<A>(at(i), b.data ? src[i] * load_some<A>(row<A, T>(b, i), valid) : src[i], valid);
  } else if (b.data) {
    for (int64_t i = 0; i < rows; ++i) store_full<A>(at(i), src[i] * load_full<A>(row<A, T>(b, i)));
  } else {
    for (int64_t i = 0; i < rows; ++i) store_full<A>(at(i), src[i]);
  }
}

template <class A, class T>
constexpr Io<A> kIo = {load_rows<A, T>, store_rows<A, T>, sizeof(T)};

// Writes zeros over `rows` rows.
inline void clear_rows(Block b, int64_t rows, int64_t bytes) {
  for (int64_t i = 0; i < rows; ++i) memset(b.data + i * b.stride, 0, bytes);
}

}  // namespace hyenarec::HYENAREC_ISA
