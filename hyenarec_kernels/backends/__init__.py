"""The backends that compute the operators: which of them work on this machine, and how to force one.

These environment variables are optional. An unknown value raises ValueError, which names the allowed ones:

    HYENAREC_BACKEND   the name of the one backend to use, as `use` forces it inside a block; a key of `BACKENDS`
    HYENAREC_LOG       1: log once per distinct call which backend and algorithm served it, and why the backends before
                       it did not (logger "hyenarec_kernels"). 0, the default: do not. Read at the first call.
    HYENAREC_CPU_ISA   the instruction set of the cpu backend: avx512, avx2 or portable; by default the best that this
                       machine has. Read when the backend is first used.

`crossovers` holds the numbers of taps at which one algorithm takes over from another.
"""

from hyenarec_kernels.backends.calls import Call
from hyenarec_kernels.backends.registry import (
    BACKENDS,
    Backend,
    available,
    forced,
    implementation,
    lacks,
    under_transforms,
    use,
    whole,
)

__all__ = [
    "BACKENDS",
    "Backend",
    "Call",
    "available",
    "forced",
    "implementation",
    "lacks",
    "under_transforms",
    "use",
    "whole",
]
