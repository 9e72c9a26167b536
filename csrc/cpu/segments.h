// Where sequences lie, from indices or a mask whose values are checked: hyenarec_kernels/segments.py says the same.
#pragma once
#include "inputs.h"

namespace hyenarec::cpu {

// Copies of starts and ends that lie within `rows`.
std::tuple<Tensor, Tensor> segments(const MaybeTensor& starts, const Tensor& ends, int64_t rows, bool packed,
                                    std::string op);

// Where the one run of every row of a mask (B, L) starts and ends.
std::tuple<Tensor, Tensor> runs(const Tensor& mask, std::string op);

}  // namespace hyenarec::cpu
