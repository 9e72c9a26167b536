"""For programs that call the compiled library's operators without Python.

In a process that has imported this package, the operators of namespace ``hyenarec`` are implemented in Python: they
choose a backend at every call. A program compiled by AOTInductor needs the CPU kernels themselves. The compiled library
also registers these as ``hyenarec_native``, forward passes only, in every process that loads it.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch._library.simple_registry import singleton
from torch.export import ExportedProgram

from hyenarec_kernels.backends import compiled
from hyenarec_kernels.library import NAMESPACE

NATIVE = "hyenarec_native"
# The operators that the compiled library also has as C functions, declared as AOTInductor wants it
# (csrc/cpu/shims.cpp).
C_FUNCTIONS = {
    "mixer_step": "AOTITorchError aoti_torch_cpu_mixer_step(AtenTensorHandle x, AtenTensorHandle w_in, "
    "AtenTensorHandle w_out, AtenTensorHandle projected, AtenTensorHandle short_taps, AtenTensorHandle short_bias, "
    "const AtenTensorHandle* memory, int64_t memory_count, const AtenTensorHandle* tables, int64_t tables_count, "
    "AtenTensorHandle steps, const char* gate, AtenTensorHandle* out)",
    "block_step": "AOTITorchError aoti_torch_cpu_block_step(AtenTensorHandle x, const AtenTensorHandle* norms, "
    "int64_t norms_count, const AtenTensorHandle* feed_forward, int64_t feed_forward_count, double eps, "
    "AtenTensorHandle w_in, AtenTensorHandle w_out, AtenTensorHandle projected, AtenTensorHandle short_taps, "
    "AtenTensorHandle short_bias, const AtenTensorHandle* memory, int64_t memory_count, "
    "const AtenTensorHandle* tables, int64_t tables_count, AtenTensorHandle steps, const char* gate, "
    "AtenTensorHandle* out)",
}


def library() -> str:
    """The path of the compiled library, which a program without Python must load before it runs an AOTInductor package.

    Raises:
        NotImplementedError: there is no compiled library.
    """
    reason = compiled.probe()
    if reason is not None:
        raise NotImplementedError(f"no compiled library: {reason}")
    found = find_spec("hyenarec_kernels._C")
    assert found is not None and found.origin is not None
    return found.origin


def use_native(program: ExportedProgram) -> ExportedProgram:
    """Makes ``program`` call the compiled library's operators instead of Python's; changes it in place and returns it.

    Raises:
        NotImplementedError: there is no compiled library.
    """
    library()
    for node in program.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == NAMESPACE:
            node.target = _native(node.target._schema.name.removeprefix(f"{NAMESPACE}::"))
    program.graph_module.recompile()
    return program


def called_directly() -> dict[str, dict[torch._ops.OpOverload, list[str]]]:
    """A setting for AOTInductor, for programs after :func:`use_native`: the operators that a package calls as C
    functions, without torch's dispatcher."""
    return {
        "aot_inductor.custom_ops_to_c_shims": {
            _native(name): [declaration] for name, declaration in C_FUNCTIONS.items()
        }
    }


@cache
def _native(name: str) -> torch._ops.OpOverload:
    fake = singleton.find(f"{NAMESPACE}::{name}").fake_impl.kernel
    assert fake is not None
    torch.library.register_fake(f"{NATIVE}::{name}", fake.func)
    operator: torch._ops.OpOverload = getattr(getattr(torch.ops, NATIVE), name).default
    return operator
