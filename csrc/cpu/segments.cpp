#include "segments.h"

namespace hyenarec::cpu {
namespace {

template <class T>
void find_runs(const Tensor& mask, const std::string& op, int64_t* starts, int64_t* ends) {
  const int64_t columns = mask.size(1);
  const T* row = static_cast<const T*>(mask.data_ptr());
  for (int64_t b = 0; b < mask.size(0); ++b, row += columns) {
    int64_t count = 0;
    starts[b] = ends[b] = 0;
    for (int64_t t = 0; t < columns; ++t) {
      STD_TORCH_CHECK(row[t] == 0 || row[t] == 1, op, ": mask must hold 0 and 1 alone, got ", int64_t(row[t]));
      if (row[t] == 0) continue;
      if (t == 0 || row[t - 1] == 0) starts[b] = t, ++count;
      ends[b] = t + 1;
    }
    STD_TORCH_CHECK(count <= 1, op, ": the real positions of a mask must be one run a row; row ", b, " has ", count,
                    " runs");
  }
}

}  // namespace

std::tuple<Tensor, Tensor> segments(const MaybeTensor& starts, const Tensor& ends, int64_t rows, bool packed,
                                    std::string op) {
  const int64_t count = ends.numel();
  Index first(starts, count, "starts"), last(ends, count, "ends");
  int64_t reached = 0;
  for (int64_t s = 0; s < count; ++s) {
    const int64_t start = first.at(s, 0), end = last.at(s, rows);
    if (packed) {
      STD_TORCH_CHECK(start <= end, op, ": cu_seqlens must not decrease, but goes from ", start, " to ", end);
      STD_TORCH_CHECK(s > 0 || start == 0, op, ": cu_seqlens must run from 0 to the ", rows, " rows of x, got ", start,
                      " to ", last.at(count - 1, rows));
    } else {
      STD_TORCH_CHECK(0 <= start && start <= end && end <= rows, op, ": row ", s, " runs from ", start, " to ", end,
                      " (starts to starts + lengths), which does not lie within its ", rows, " positions");
    }
    reached = end;
  }
  STD_TORCH_CHECK(!packed || reached == rows, op, ": cu_seqlens must run from 0 to the ", rows, " rows of x, got 0 to ",
                  reached);
  return {starts ? torch::stable::clone(*starts) : empty(ends, {0}, ends.scalar_type()), torch::stable::clone(ends)};
}

std::tuple<Tensor, Tensor> runs(const Tensor& mask_, std::string op) {
  STD_TORCH_CHECK(mask_.dim() == 2, op, ": mask must be (B, L)");
  Tensor mask = torch::stable::contiguous(mask_);
  Tensor starts = empty(mask, {mask.size(0)}, ScalarType::Long), ends = empty(mask, {mask.size(0)}, ScalarType::Long);
  auto find = [&](auto zero) {
    find_runs<decltype(zero)>(mask, op, static_cast<int64_t*>(starts.data_ptr()),
                              static_cast<int64_t*>(ends.data_ptr()));
  };
  switch (mask.scalar_type()) {
    case ScalarType::Bool:
    case ScalarType::Byte: find(uint8_t{}); break;
    case ScalarType::Char: find(int8_t{}); break;
    case ScalarType::Short: find(int16_t{}); break;
    case ScalarType::Int: find(int32_t{}); break;
    case ScalarType::Long: find(int64_t{}); break;
    default: STD_TORCH_CHECK(false, op, ": mask must be bool or integers 0 and 1");
  }
  return {starts, ends};
}

}  // namespace hyenarec::cpu
