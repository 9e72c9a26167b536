// Where sequences lie, from checked indices or a checked mask, as in hyenarec_kernels/segments.py.
#pragma once
#include "inputs.h"

namespace hyenarec::cpu {

// Checks that starts and ends lie within `rows`, and copies them.
std::tuple<Tensor, Tensor> segments(const MaybeTensor& starts, const Tensor& ends, int64_t rows, bool packed,
                                    std::string op);

// The start and end of the one run of real positions in every row of a mask (B, L).
std::tuple<Tensor, Tensor> runs(const Tensor& mask, std::string op);

}  // namespace hyenarec::cpu
