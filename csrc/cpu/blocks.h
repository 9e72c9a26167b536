// The block low-rank plan of a Legendre filter, for programs without Python. Python chooses among many shapes the one
// whose error is just allowed (hyenarec_kernels/backends/cpu/plan.py). Here there is one shape, and it is exact: a filter
// of N terms is a polynomial of degree below N, so that N nodes determine a window of it, N local polynomials hold its
// block, and the entries (r, s) with r + s >= N are zero. No bound has to be computed, for at most twice the time.
#pragma once
#include "inputs.h"

namespace hyenarec::cpu {

struct BlockPlan {
  Plan plan;  // of no lags: those are for gradients. Its levels point into `constants`.
  Tensor basis, constants;
};

// The plan for sequences of up to `longest` rows in the arithmetic type beside x, made once and kept; null where direct
// is faster, or where the filter has more terms than blocks hold.
const BlockPlan* block_plan(const Tensor& x, int64_t terms, int64_t horizon, int64_t longest);

}  // namespace hyenarec::cpu
