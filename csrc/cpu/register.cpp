// Registers the ops of namespace hyenarec_cpu, which Python's cpu backend calls, and makes the library a Python module.
#include "operators.h"
#include "ops.h"
#include "wire.h"

#include <cstring>

namespace hyenarec {
namespace {

// The plan as wire.h describes it, with pointers into `constants`, an array of the arithmetic type.
Plan plan_of(const Tensor& numbers, const Tensor& constants, const Tensor& x) {
  const int64_t count = numbers.numel();
  STD_TORCH_CHECK(numbers.scalar_type() == ScalarType::Long && numbers.is_contiguous() && count >= kHeadFields,
                  "plan: expected at least ", kHeadFields, " contiguous int64");
  const auto* values = static_cast<const int64_t*>(numbers.data_ptr());
  WireHead head;
  std::memcpy(&head, values, sizeof head);
  STD_TORCH_CHECK(head.version == kInterface && head.head_fields == kHeadFields && head.level_fields == kLevelFields,
                  "plan: it is of version ", head.version, " with ", head.head_fields, " + ", head.level_fields,
                  " fields, and the compiled extension reads version ", kInterface, " with ", kHeadFields,
                  " + ", kLevelFields, ": reinstall");
  const int64_t levels = (count - kHeadFields) / kLevelFields;
  STD_TORCH_CHECK(count == kHeadFields + levels * kLevelFields && levels <= kMaxLevels,
                  "plan: expected ", kLevelFields, " values for each of at most ", kMaxLevels, " levels, got ",
                  count - kHeadFields);
  STD_TORCH_CHECK(constants.scalar_type() == cpu::arithmetic(dtype_of(x)) && constants.is_contiguous(),
                  "constants: expected contiguous values of the arithmetic type");
  auto constant = [&](int64_t offset, int64_t needed) {
    STD_TORCH_CHECK(0 <= offset && offset + needed <= constants.numel(), "plan: it reads past its ", constants.numel(),
                    " constants");
    return static_cast<const char*>(constants.data_ptr()) + offset * int64_t(constants.element_size());
  };
  Plan plan{head.horizon, head.length, head.chunk, head.near_taps, head.far_lag, head.far_taps, head.far_row,
            head.num_samples, constant(head.lags, head.num_samples), int(levels), {}};
  STD_TORCH_CHECK(plan.chunk > 0 && plan.chunk % 8 == 0, "plan: chunks of ", plan.chunk, " rows are no whole tiles of 8");
  for (int64_t l = 0; l < levels; ++l) {
    WireLevel v;
    std::memcpy(&v, values + kHeadFields + l * kLevelFields, sizeof v);
    STD_TORCH_CHECK(0 < v.rank && v.rank <= kMaxRank && 0 < v.nodes && v.nodes <= kMaxNodes,
                    "plan: rank ", v.rank, " or ", v.nodes, " nodes too large");
    plan.levels[l] = {v.chunk,     v.fan,       v.rank,       v.degree,
                      v.nodes,     v.near_pairs, v.far_first, v.far_pairs,
                      v.sample_row, constant(v.moments, v.half * v.rank), constant(v.from_nodes, 0), v.half};
  }
  return plan;
}

// conv and conv_backward, with the plan in the form in which Python passes it.
Tensor conv(const Tensor& x, const Tensor& filter, const MaybeTensor& basis, const MaybeTensor& rate,
            const MaybeTensor& skip, const MaybeTensor& pre_gate, const MaybeTensor& post_gate,
            const MaybeTensor& starts, const MaybeTensor& ends, const Tensor& plan, const Tensor& constants) {
  return cpu::conv(x, filter, basis, rate, skip, pre_gate, post_gate, starts, ends, plan_of(plan, constants, x));
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> conv_backward(
    const Tensor& grad, const Tensor& x, const Tensor& filter, const MaybeTensor& basis, const MaybeTensor& rate,
    const MaybeTensor& skip, const MaybeTensor& pre_gate, const MaybeTensor& post_gate, const MaybeTensor& starts,
    const MaybeTensor& ends, const Tensor& plan, const Tensor& constants, std::vector<bool> needs) {
  return cpu::conv_backward(grad, x, filter, basis, rate, skip, pre_gate, post_gate, starts, ends,
                            plan_of(plan, constants, x), needs);
}

std::string isa() { return kernels().name; }
int64_t interface() { return kInterface; }
std::string plan_fields() { return std::string(kHeadNames) + "/ " + kLevelNames; }
int64_t most_scratch() { return scratch_peak(); }
double peak(int64_t steps) { return kernels().peak(steps, cpu::parallel); }

}  // namespace

STABLE_TORCH_LIBRARY(hyenarec_cpu, m) {
  m.def(
      "conv(Tensor x, Tensor filter, Tensor? basis, Tensor? rate, Tensor? skip, Tensor? pre_gate, "
      "Tensor? post_gate, Tensor? starts, Tensor? ends, Tensor plan, Tensor constants) -> Tensor");
  m.def(
      "conv_backward(Tensor grad, Tensor x, Tensor filter, Tensor? basis, Tensor? rate, Tensor? skip, "
      "Tensor? pre_gate, Tensor? post_gate, Tensor? starts, Tensor? ends, Tensor plan, Tensor constants, bool[] needs) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "conv_last(Tensor x, Tensor filter, Tensor? basis, Tensor? rate, Tensor? skip, Tensor? pre_gate, "
      "Tensor? post_gate, Tensor? starts, Tensor? ends) -> Tensor");
  m.def(
      "conv_last_backward(Tensor grad, Tensor x, Tensor taps, Tensor? skip, Tensor? pre_gate, Tensor? post_gate, "
      "Tensor? starts, Tensor? ends, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "conv_step(Tensor x, Tensor(a!) history, Tensor taps, Tensor steps, Tensor? pre_gate, Tensor? post_gate) "
      "-> Tensor");
  m.def(
      "compact_step(Tensor x, Tensor(a!) page, Tensor(b!)[] levels, Tensor near, Tensor[] tables, Tensor steps, "
      "int number, Tensor? pre_gate, Tensor? post_gate) -> Tensor");
  m.def(
      "mixer_step(Tensor x, Tensor w_in, Tensor w_out, Tensor(a!) projected, Tensor short_taps, Tensor short_bias, "
      "Tensor(b!)[] memory, Tensor[] tables, Tensor(c!) steps, str gate) -> Tensor");
  m.def(
      "block_step(Tensor x, Tensor[] norms, Tensor[] feed_forward, float eps, Tensor w_in, Tensor w_out, "
      "Tensor(a!) projected, Tensor short_taps, Tensor short_bias, Tensor(b!)[] memory, Tensor[] tables, "
      "Tensor(c!) steps, str gate) -> Tensor");
  m.def("short_conv(Tensor x, Tensor weight, Tensor? bias, Tensor? starts, Tensor? ends, bool silu) -> Tensor");
  m.def(
      "short_conv_backward(Tensor grad, Tensor x, Tensor weight, Tensor? bias, Tensor? starts, Tensor? ends, "
      "bool silu, bool[] needs) -> (Tensor, Tensor, Tensor)");
  m.def(
      "gated_short_conv(Tensor x, Tensor weight, Tensor? bias, Tensor? starts, Tensor? ends, int dim) "
      "-> (Tensor, Tensor)");
  m.def(
      "gated_short_conv_backward(Tensor grad_u, Tensor grad_q, Tensor x, Tensor weight, Tensor? bias, Tensor? starts, "
      "Tensor? ends, int dim, bool[] needs) -> (Tensor, Tensor, Tensor)");
  m.def("dropout(Tensor x, Tensor seed, int dropped, bool gelu) -> Tensor");
  m.def("dropout_backward(Tensor grad, Tensor x, Tensor seed, int dropped, bool gelu) -> Tensor");
  m.def("interface() -> int");
  m.def("plan_fields() -> str");
  m.def("isa() -> str");
  m.def("scratch_peak() -> int");
  m.def("peak(int steps) -> float");
}
STABLE_TORCH_LIBRARY_IMPL(hyenarec_cpu, CPU, m) {
  m.impl("conv", TORCH_BOX(&conv));
  m.impl("conv_backward", TORCH_BOX(&conv_backward));
  m.impl("conv_last", TORCH_BOX(&cpu::conv_last));
  m.impl("conv_last_backward", TORCH_BOX(&cpu::conv_last_backward));
  m.impl("conv_step", TORCH_BOX(&cpu::conv_step));
  m.impl("compact_step", TORCH_BOX(&cpu::compact_step));
  m.impl("mixer_step", TORCH_BOX(&cpu::mixer_step));
  m.impl("block_step", TORCH_BOX(&cpu::block_step));
  m.impl("short_conv", TORCH_BOX(&cpu::short_conv));
  m.impl("short_conv_backward", TORCH_BOX(&cpu::short_conv_backward));
  m.impl("gated_short_conv", TORCH_BOX(&cpu::gated_short_conv));
  m.impl("gated_short_conv_backward", TORCH_BOX(&cpu::gated_short_conv_backward));
  m.impl("dropout", TORCH_BOX(&cpu::dropout));
  m.impl("dropout_backward", TORCH_BOX(&cpu::dropout_backward));
}
STABLE_TORCH_LIBRARY_IMPL(hyenarec_cpu, CompositeExplicitAutograd, m) {
  m.impl("interface", TORCH_BOX(&interface));
  m.impl("plan_fields", TORCH_BOX(&plan_fields));
  m.impl("isa", TORCH_BOX(&isa));
  m.impl("scratch_peak", TORCH_BOX(&most_scratch));
  m.impl("peak", TORCH_BOX(&peak));
}

}  // namespace hyenarec

#include <Python.h>
#pragma weak PyModule_Create2  // a program without Python loads this library too
PyMODINIT_FUNC PyInit__C() {
  hyenarec::cpu::leave_operators_to_python();
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr,
                                   nullptr};
  return PyModule_Create(&definition);
}