// Plain types, without torch, that the torch side passes to every device's kernels.
#pragma once
#include <cstdint>

namespace hyenarec {

enum class Dtype { f32, f64, bf16, f16 };

// A tensor seen as rows of channels: element (batch, t, d) is at data + batch * batch_stride + t * row_stride + d.
struct Rows {
  void* data = nullptr;
  int64_t batch_stride = 0, row_stride = 0;
};

}  // namespace hyenarec
