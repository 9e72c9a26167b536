// Computes effective parameters from those that a module stores, and the gradients of the stored ones, each call in one
// launch. This is the interface between the torch side and the kernel, as in long_conv.h.
#pragma once
#include <cstdint>

#include "../common/types.h"

namespace hyenarec::cuda {

// A parameter, or its gradient, in some dtype. float64 is not served.
struct Stored {
  const void* data = nullptr;
  Dtype dtype = Dtype::f32;
};

// to[i] = (origin[i] + factor * from[i]) * scale[i / each], or the exponential of that.
struct Change {
  Stored from;
  const float* origin = nullptr;  // null: 0
  float factor = 1.f;
  Stored scale;  // null: 1
  int64_t each = 1;
  bool exponential = false;
  void* to = nullptr;
  Dtype to_dtype = Dtype::f32;
  int64_t count = 0;
};

constexpr int kMostChanges = 8;
struct Changes {
  Change list[kMostChanges];
  int size = 0;

  void add(const Change& change) { list[size++] = change; }
};

// Null, or why the call could not be made: one line, valid until this thread's next call.
const char* change_parameters(const Changes& changes, void* stream);

}  // namespace hyenarec::cuda
