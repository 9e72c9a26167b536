// One instruction set's kernels. setup.py compiles this file once for each: HYENAREC_ISA names the set, and the
// compiler's flags choose it.
#include "backward.h"
#include "dropout.h"
#include "last.h"
#include "peak.h"
#include "short_conv.h"
#include "step.h"

#define HYENAREC_JOIN_(a, b) a##b
#define HYENAREC_JOIN(a, b) HYENAREC_JOIN_(a, b)
#define HYENAREC_TEXT_(a) #a
#define HYENAREC_TEXT(a) HYENAREC_TEXT_(a)

namespace hyenarec::HYENAREC_ISA {
namespace {
void conv_forward(const ConvArgs& args, ParallelFor parallel) {
  args.dtype == Dtype::f64 ? forward<double>(args, parallel) : forward<float>(args, parallel);
}
void conv_backward(const ConvArgs& args, ParallelFor parallel) {
  args.dtype == Dtype::f64 ? backward<double>(args, parallel) : backward<float>(args, parallel);
}
void conv_last(const ConvArgs& args, ParallelFor parallel) {
  args.dtype == Dtype::f64 ? last_rows<double>(args, parallel) : last_rows<float>(args, parallel);
}
void conv_last_backward(const ConvArgs& args, ParallelFor parallel) {
  args.dtype == Dtype::f64 ? last_rows_backward<double>(args, parallel) : last_rows_backward<float>(args, parallel);
}
void conv_step(const StepArgs& args, ParallelFor parallel) {
  args.dtype == Dtype::f64 ? step<double>(args, parallel) : step<float>(args, parallel);
}
}  // namespace
}  // namespace hyenarec::HYENAREC_ISA

namespace isa = hyenarec::HYENAREC_ISA;
const hyenarec::Kernels hyenarec::HYENAREC_JOIN(kernels_, HYENAREC_ISA) = {
    HYENAREC_TEXT(HYENAREC_ISA), isa::conv_forward, isa::conv_backward,      isa::conv_last, isa::conv_last_backward,
    isa::conv_step,              isa::short_conv_of_type, isa::dropout, isa::peak,
};
