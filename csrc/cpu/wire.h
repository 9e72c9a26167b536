// The plan's wire format: one int64 for each name below, in this order, first those of the plan and then those of each
// level. hyenarec_kernels/backends/cpu/plan.py writes the same names in the same order; the extension says what it reads
// (plan_format) and is refused where that is something else. A change of names, order or meaning is a new version.
#pragma once
#include <cstdint>

namespace hyenarec {

constexpr int64_t kPlanVersion = 1;

#define HYENAREC_PLAN_FIELDS(F) \
  F(version) F(levels) F(horizon) F(chunk) F(near_taps) F(far_lag) F(far_taps) F(far_row) F(samples) F(lags)
#define HYENAREC_LEVEL_FIELDS(F)                                                                                      \
  F(chunk) F(fan) F(rank) F(degree) F(nodes) F(near_pairs) F(far_first) F(far_pairs) F(sample_row) F(moments)         \
  F(from_nodes) F(half)

#define HYENAREC_FIELD(name) int64_t name;
struct PlanNumbers {
  HYENAREC_PLAN_FIELDS(HYENAREC_FIELD)
};
struct LevelNumbers {
  HYENAREC_LEVEL_FIELDS(HYENAREC_FIELD)
};
#undef HYENAREC_FIELD

#define HYENAREC_NAME(name) " " #name
inline const char* plan_format_names() {
  return "plan" HYENAREC_PLAN_FIELDS(HYENAREC_NAME) "; level" HYENAREC_LEVEL_FIELDS(HYENAREC_NAME);
}
#undef HYENAREC_NAME

}  // namespace hyenarec
