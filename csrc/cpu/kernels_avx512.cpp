#define HYENAREC_ISA avx512
#include "kernels.inc"

namespace isa = hyenarec::avx512;
const hyenarec::Kernels hyenarec::kernels_avx512 = {
    "avx512",
    isa::conv_forward,
    isa::conv_backward,
    isa::conv_last,
    isa::conv_last_backward,
    isa::conv_step,
    isa::short_conv_of_type,
    isa::dropout,
    isa::peak,
};
