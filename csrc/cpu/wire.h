// The plan in the form in which hyenarec_kernels/backends/cpu/plan.py passes it: int64 values, the fields of WireHead
// and then those of WireLevel for each level, in this order. kInterface goes up whenever this or an op's signature or
// meaning changes, here and in hyenarec_kernels/backends/compiled.py.
#pragma once
#include <cstdint>

namespace hyenarec {

constexpr int64_t kInterface = 9;

// version, head_fields, level_fields: kInterface and how many fields each part has. moments, from_nodes, lags: where
// they begin among the constants. The others are those of Plan and Level (args.h).
#define HYENAREC_WIRE_HEAD(field)                                                                              \
  field(version) field(head_fields) field(level_fields) field(horizon) field(length) field(chunk)              \
  field(near_taps) field(far_lag) field(far_taps) field(far_row) field(num_samples) field(lags)
#define HYENAREC_WIRE_LEVEL(field)                                                                             \
  field(chunk) field(fan) field(rank) field(degree) field(nodes) field(near_pairs) field(far_first)            \
  field(far_pairs) field(sample_row) field(moments) field(from_nodes) field(half)

#define HYENAREC_WIRE_MEMBER(name) int64_t name;
#define HYENAREC_WIRE_NAME(name) #name " "
struct WireHead {
  HYENAREC_WIRE_HEAD(HYENAREC_WIRE_MEMBER)
};
struct WireLevel {
  HYENAREC_WIRE_LEVEL(HYENAREC_WIRE_MEMBER)
};
constexpr int64_t kHeadFields = sizeof(WireHead) / sizeof(int64_t), kLevelFields = sizeof(WireLevel) / sizeof(int64_t);
constexpr const char *kHeadNames = HYENAREC_WIRE_HEAD(HYENAREC_WIRE_NAME),
                     *kLevelNames = HYENAREC_WIRE_LEVEL(HYENAREC_WIRE_NAME);
#undef HYENAREC_WIRE_MEMBER
#undef HYENAREC_WIRE_NAME

}  // namespace hyenarec
