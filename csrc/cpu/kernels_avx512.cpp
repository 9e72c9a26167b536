#define HYENAREC_ISA avx512
#include "kernels.inc"

const hyenarec::Kernels hyenarec::kernels_avx512 = {
    "avx512", hyenarec::avx512::conv_forward, hyenarec::avx512::conv_backward, nullptr, nullptr, hyenarec::avx512::peak};
