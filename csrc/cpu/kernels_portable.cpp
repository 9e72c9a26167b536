#define HYENAREC_ISA portable
#include "kernels.inc"

const hyenarec::Kernels hyenarec::kernels_portable = {
    "portable", hyenarec::portable::conv_forward, hyenarec::portable::conv_backward, nullptr, nullptr, hyenarec::portable::peak};
