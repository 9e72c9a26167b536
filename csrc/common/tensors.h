// Helpers for tensors in torch's stable ABI, which the registrations of every device share.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "types.h"

namespace hyenarec {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

inline Dtype dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return Dtype::f32;
    case ScalarType::Double: return Dtype::f64;
    case ScalarType::BFloat16: return Dtype::bf16;
    case ScalarType::Half: return Dtype::f16;
    default: STD_TORCH_CHECK(false, "x: expected float32, float64, bfloat16 or float16");
  }
}

// Kernels read rows whose channels are adjacent; any other layout is copied.
inline Tensor unit_stride(const Tensor& t) {
  return t.dim() == 0 || t.size(t.dim() - 1) <= 1 || t.stride(t.dim() - 1) == 1 ? t : torch::stable::contiguous(t);
}
inline MaybeTensor unit_stride(const MaybeTensor& t) { return t ? MaybeTensor(unit_stride(*t)) : t; }

// torch's own `contiguous` takes as long as an addition, even where it has nothing to do.
inline Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

inline Rows rows_of(const Tensor& t) {
  if (t.numel() == 0) return {};
  if (t.dim() == 3) return {t.data_ptr(), t.stride(0), t.stride(1)};
  return {t.data_ptr(), 0, t.stride(0)};
}
inline Rows rows_of(const MaybeTensor& t) { return t ? rows_of(*t) : Rows{}; }

inline std::vector<int64_t> sizes_of(const Tensor& t) { return {t.sizes().begin(), t.sizes().end()}; }

inline Tensor empty(const Tensor& like, std::vector<int64_t> sizes, ScalarType type) {
  return torch::stable::new_empty(like, sizes, type);
}

}  // namespace hyenarec
