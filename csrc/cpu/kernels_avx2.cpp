#define HYENAREC_ISA avx2
#include "kernels.inc"

const hyenarec::Kernels hyenarec::kernels_avx2 = {
    "avx2", hyenarec::avx2::conv_forward, hyenarec::avx2::conv_backward, nullptr, nullptr, hyenarec::avx2::peak};
