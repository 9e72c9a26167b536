// How the CPU's ops read their tensors: sequences from starts and ends, and values whose number and type are checked.
// Python checks arguments when it calls an operator or exports a program; the checks here and in the ops only prevent
// reads out of bounds.
#pragma once
#include "../common/tensors.h"
#include "args.h"

#include <algorithm>

namespace hyenarec::cpu {

inline void parallel(int64_t count, Body body, void* context) {
  torch::stable::parallel_for(0, count, 1, [=](int64_t begin, int64_t end) { body(context, begin, end); });
}

inline ScalarType arithmetic(Dtype dtype) { return dtype == Dtype::f64 ? ScalarType::Double : ScalarType::Float; }

// `t`, contiguous, in the arithmetic type of x: float64 where x is float64, float32 otherwise.
inline Tensor in_arithmetic(const Tensor& t, const Tensor& x) {
  const ScalarType type = arithmetic(dtype_of(x));
  return torch::stable::contiguous(t.scalar_type() == type ? t : torch::stable::to(t, type));
}
inline MaybeTensor in_arithmetic(const MaybeTensor& t, const Tensor& x) {
  return t ? MaybeTensor(in_arithmetic(*t, x)) : t;
}

// These values in the arithmetic type of x.
inline Tensor tensor_of(const Tensor& x, const std::vector<double>& values, const std::vector<int64_t>& sizes) {
  Tensor out = empty(x, sizes, arithmetic(dtype_of(x)));
  if (out.scalar_type() == ScalarType::Double)
    std::copy(values.begin(), values.end(), static_cast<double*>(out.data_ptr()));
  else
    std::copy(values.begin(), values.end(), static_cast<float*>(out.data_ptr()));
  return out;
}

inline const void* values(const Tensor& t, Dtype dtype, int64_t count, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == arithmetic(dtype) && t.is_contiguous() && t.numel() == count, name,
                  ": expected ", count, " contiguous values of the arithmetic type");
  return t.data_ptr();
}

// Checks a gate or gradient that goes with `x` and has these sizes: kernels read it by the sizes of x.
inline MaybeTensor beside(const Tensor& x, const MaybeTensor& t, const std::vector<int64_t>& sizes, const char* name) {
  STD_TORCH_CHECK(!t || (sizes_of(*t) == sizes && t->scalar_type() == x.scalar_type()), name,
                  ": expected the dtype of x and one value for each value of the output");
  return unit_stride(t);
}

// `starts` or `ends`: one value per sequence.
class Index {
 public:
  Index(const MaybeTensor& t, int64_t count, const char* name) {
    if (!t) return;
    ScalarType type = t->scalar_type();
    STD_TORCH_CHECK(t->dim() == 1 && t->size(0) == count && (type == ScalarType::Long || type == ScalarType::Int), name,
                    ": expected ", count, " values of int32 or int64");
    data_ = t->data_ptr(), wide_ = type == ScalarType::Long, stride_ = t->stride(0);
  }
  int64_t at(int64_t i, int64_t otherwise) const {
    if (!data_) return otherwise;
    return wide_ ? static_cast<const int64_t*>(data_)[i * stride_] : static_cast<const int32_t*>(data_)[i * stride_];
  }

 private:
  const void* data_ = nullptr;
  bool wide_ = false;
  int64_t stride_ = 0;
};

// The sequences between starts and ends: positions in their batch row (padded), or rows of x, which they must cover in
// order (packed). Refuses what the operators' own checks in Python refuse, since compiled and exported programs may
// come without those.
inline std::vector<Sequence> sequences_of(const Tensor& x, const MaybeTensor& starts, const MaybeTensor& ends) {
  STD_TORCH_CHECK(x.dim() == 2 || x.dim() == 3, "x: expected padded (B, L, D) or packed (T, D)");
  const bool packed = x.dim() == 2;
  const int64_t rows = x.size(packed ? 0 : 1), count = !packed ? x.size(0) : ends ? ends->size(0) : 1;
  Index first(starts, count, "starts"), last(ends, count, "ends");
  std::vector<Sequence> sequences(count);
  int64_t reached = 0;
  for (int64_t s = 0; s < count; ++s) {
    int64_t start = first.at(s, 0), end = last.at(s, rows);
    STD_TORCH_CHECK(0 <= start && start <= end && end <= rows, packed ? "sequence " : "row ", s, " runs from ", start,
                    " to ", end, ", which does not lie within its ", rows, packed ? " rows" : " positions");
    STD_TORCH_CHECK(!packed || start == reached, "cu_seqlens: sequence ", s, " begins at row ", start, " and not at ",
                    reached, ": packed sequences must cover the rows of x in order");
    sequences[s] = {packed ? 0 : s, start, end - start};
    reached = end;
  }
  STD_TORCH_CHECK(!packed || reached == rows, "cu_seqlens must run from 0 to the ", rows, " rows of x, got 0 to ", reached);
  return sequences;
}

// Rows of the longest sequence; 1 where there are none, which keeps plans and taps from being empty.
inline int64_t longest_of(const Tensor& x, const MaybeTensor& starts, const MaybeTensor& ends) {
  int64_t longest = 1;
  for (const Sequence& sequence : sequences_of(x, starts, ends)) longest = std::max(longest, sequence.length);
  return longest;
}

}  // namespace hyenarec::cpu
