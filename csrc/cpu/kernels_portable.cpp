#define HYENAREC_ISA portable
#include "kernels.inc"

namespace isa = hyenarec::portable;
const hyenarec::Kernels hyenarec::kernels_portable = {
    "portable",
    isa::conv_forward,
    isa::conv_backward,
    isa::conv_last,
    isa::conv_last_backward,
    isa::conv_step,
    isa::short_conv_of_type,
    isa::dropout,
    isa::peak,
};
