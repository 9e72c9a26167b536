#define HYENAREC_ISA avx2
#include "kernels.inc"

namespace isa = hyenarec::avx2;
const hyenarec::Kernels hyenarec::kernels_avx2 = {
    "avx2",
    isa::conv_forward,
    isa::conv_backward,
    isa::conv_last,
    isa::conv_last_backward,
    isa::conv_step,
    isa::short_conv_of_type,
    isa::dropout,
    isa::peak,
};
