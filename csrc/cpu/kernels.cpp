// The kernels of one instruction set. setup.py compiles this file once for each set, with the set's compiler flags and
// with HYENAREC_ISA defined as its name.
#include "backward.h"
#include "block.h"
#include "compact.h"
#include "dropout.h"
#include "last.h"
#include "peak.h"
#include "short_conv.h"

#define HYENAREC_QUOTED(name) #name
#define HYENAREC_NAME_OF(isa) HYENAREC_QUOTED(isa)

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
void compact_step(const CompactArgs& args, ParallelFor parallel) {
  args.dtype == Dtype::f64 ? compact<double>(args, parallel) : compact<float>(args, parallel);
}
void mixer_step(const MixerArgs& args, ParallelFor parallel) {
  args.dtype == Dtype::f64 ? mixer<double>(args, parallel) : mixer<float>(args, parallel);
}
void block_step(const MixerArgs& args, const BlockArgs& around, ParallelFor parallel) {
  args.dtype == Dtype::f64 ? block<double>(args, around, parallel) : block<float>(args, around, parallel);
}

}  // namespace

const Kernels kernels = {
    HYENAREC_NAME_OF(HYENAREC_ISA), conv_forward, conv_backward, conv_last,          conv_last_backward, conv_step,
    compact_step,                   mixer_step,   block_step,    short_conv_of_type, dropout,            peak,
};

}  // namespace hyenarec::HYENAREC_ISA
