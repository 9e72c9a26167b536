#define HYENAREC_ISA portable
#include "kernels.inc"

const hyenarec::Kernels hyenarec::kernels_portable = {
    "portable", hyenarec::portable::conv_forward, nullptr, nullptr, nullptr, hyenarec::portable::peak};
