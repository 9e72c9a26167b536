"""How the Triton kernels are declared and launched: parameters' names, and what Triton must not specialise for."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from hyenarec_kernels.backends import triton as package
from tests.interpreter import python

pytest.importorskip("triton", reason="triton is not installed")

from benchmarks.gpu.ahead_of_time import OPTIONS, launches
from benchmarks.gpu.compiled import CASES, call
from hyenarec_kernels.backends.triton.launching import with_strides

ROOT = Path(__file__).parents[2]
USES = r"tl\.(?:load|store)\((\w+)|(\w+) is (?:not )?None"
KERNELS = """
import json, pkgutil
from importlib import import_module
from triton.runtime.jit import JITFunction
from hyenarec_kernels.backends import triton

found = {}
for module in pkgutil.walk_packages(triton.__path__, triton.__name__ + "."):
    for value in vars(import_module(module.name)).values():
        if isinstance(value, JITFunction):
            lists = [*(value.do_not_specialize or []), *(value.do_not_specialize_on_alignment or [])]
            found[value.fn.__name__] = [value.arg_names, lists]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def functions() -> dict[str, tuple[list[str], list[str]]]:
    """Every Triton function of the package: its parameters, and those that it lists as not to be specialised."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = python("-c", KERNELS, env=environment)
    assert done.returncode == 0, done.stderr
    return {name: (parameters, lists) for name, (parameters, lists) in json.loads(done.stdout).items()}


def test_what_is_left_unspecialized_is_a_parameter(functions: dict[str, tuple[list[str], list[str]]]) -> None:
    """Triton silently ignores unknown names in that list, and would then compile a kernel again for another length."""
    wrong = {name: set(lists) - set(parameters) for name, (parameters, lists) in functions.items()}
    assert not {name: names for name, names in wrong.items() if names}


def test_kernels_leave_lengths_and_indices_unspecialized(functions: dict[str, tuple[list[str], list[str]]]) -> None:
    kernels = {name: found for name, found in functions.items() if name.endswith("_kernel")}
    assert len(kernels) == 20
    lengths = {"columns", "per_row", "per_row_below", "per_row_above", "sequences_ptr", "starts_ptr", "ends_ptr"}
    for name, (parameters, lists) in kernels.items():
        assert lengths & set(parameters) <= set(lists), name
        assert "slots" in lists or "slots" not in parameters or name == "conv_step_kernel", name  # a fixed size


def test_pointers_end_in_ptr() -> None:
    """This includes whatever a kernel loads from or stores to directly, and every parameter that may be absent."""
    checked = 0
    for path in Path(package.__file__).parent.rglob("*.py"):
        for function in ast.parse(path.read_text()).body:
            if not isinstance(function, ast.FunctionDef) or "jit" not in ast.unparse(function.decorator_list):
                continue
            parameters, body = {argument.arg for argument in function.args.args}, ast.unparse(function)
            used = {word for words in re.findall(USES, body) for word in words}
            assert all(name.endswith("_ptr") for name in used & parameters), function.name
            checked += len(used & parameters)
    assert checked > 50


@pytest.mark.skipif(torch.cuda.is_available(), reason="these run in the interpreter, where there is no GPU")
@pytest.mark.parametrize("case", [case for case in CASES if case[0] != torch.bfloat16], ids=str)
def test_every_launch_names_all_parameters_and_no_others(case: tuple[Any, ...]) -> None:
    """The interpreter would silently drop a name that a kernel does not have."""
    with launches() as found:
        call(*case)
    assert len({kernel.fn.__name__ for kernel, _ in found}) > 10
    for kernel, arguments in found:
        assert set(arguments) - set(OPTIONS) == set(inspect.signature(kernel.fn).parameters), kernel.fn.__name__


def test_a_tensor_goes_with_its_row_stride() -> None:
    x, gate = torch.zeros(2, 5, 6)[..., :3], torch.zeros(2, 6, 5).transpose(1, 2)[..., :3]
    named = with_strides(x=x, gate=gate, absent=None)
    assert named["x_ptr"].data_ptr() == x.data_ptr() and named["x_row"] == 6
    assert named["gate_ptr"].is_contiguous() and named["gate_row"] == 3
    assert named["absent_ptr"] is None and named["absent_row"] == 0
