// The block low-rank plan of a Legendre filter, for programs without Python. Python searches many shapes for the
// fastest whose error is within the tolerance (hyenarec_kernels/backends/cpu/plan.py). Here there is one shape, and it
// is exact: a filter of N terms is a polynomial of degree below N, so N nodes determine it on a run of lags, N local
// polynomials represent its block, and the entries (r, s) with r + s >= N are zero. No error bound has to be computed;
// the convolution takes at most twice the time.
#pragma once
#include "inputs.h"

namespace hyenarec::cpu {

struct BlockPlan {
  Plan plan;  // `lags` is null: only gradients read it. The levels point into `constants`.
  Tensor basis, constants;
};

// The plan for sequences of up to `longest` rows, in the arithmetic type of x; made once and cached. Null where direct
// is faster, or where the filter has more terms than the block form supports.
const BlockPlan* block_plan(const Tensor& x, int64_t terms, int64_t horizon, int64_t longest);

}  // namespace hyenarec::cpu
