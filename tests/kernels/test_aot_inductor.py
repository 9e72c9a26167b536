"""Programs without Python: the operators called from the compiled library alone, and AOTInductor packages."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from operator_cases import LAYOUTS, OPERATORS, TOLERANCE, Case, Layout
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import hyenarec_kernels as hk
from hyenarec_kernels import backends
from hyenarec_kernels.backends import cpu
from hyenarec_kernels.nn import CompactState, HyenaMixer
from tests.interpreter import python

pytestmark = pytest.mark.skipif(cpu.probe() is not None, reason=f"cpu backend: {cpu.probe()}")
STEPS = ("conv_step", "compact_step", "mixer_step")
NAMES = ("long_conv", "legendre_conv", "short_conv", "gated_short_conv", *STEPS, "segments", "runs")
PACKAGE_PROGRAM = Path(__file__).parents[1] / "native" / "package_test.cpp"
Call = tuple[str, tuple[Any, ...]]
# Does what a program without Python does: it loads the compiled library and never imports the package.
REPLAY = """
import sys, torch
library, calls, answers = sys.argv[1:]
torch.ops.load_library(library)
found = []
for name, arguments in torch.load(calls):
    # the same values with other strides
    arguments = tuple(torch.stack([a, a], -1)[..., 0] if isinstance(a, torch.Tensor) else a for a in arguments)
    try:
        out = getattr(torch.ops.hyenarec, name)(*arguments)
    except RuntimeError as error:
        out = str(error).splitlines()[0]
    found.append((out, arguments))  # a step writes to its history
assert not any(name.startswith("hyenarec") for name in sys.modules)
torch.save(found, answers)
"""
RUN_PACKAGE = """
import sys, torch
library, package, calls, answers = sys.argv[1:]
torch.ops.load_library(library)
loaded = torch._inductor.aoti_load_package(package)
inputs = torch.load(calls)
found = [loaded(*x) for x in inputs]
assert not any(name.startswith("hyenarec") for name in sys.modules)
import hyenarec_kernels  # its definitions take the place of the library's under the loaded package
torch.save((found, [loaded(*x) for x in inputs]), answers)
"""


def library() -> str:
    found = find_spec("hyenarec_kernels._C")
    assert found is not None and found.origin is not None
    return found.origin


def run(program: str, *arguments: object) -> str:
    warnings_are_errors = "import warnings; warnings.simplefilter('error')\n"
    done = python("-c", warnings_are_errors + program, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def without_python(calls: list[Call], folder: Path) -> list[Any]:
    """What each call returns in a process that never imports the package, and the call's arguments afterwards."""
    torch.save(calls, folder / "calls.pt")
    run(REPLAY, library(), folder / "calls.pt", folder / "answers.pt")
    answers: list[Any] = torch.load(folder / "answers.pt")
    return answers


class Recorder(TorchDispatchMode):
    """Records each operator call: copies of its arguments, its result, and copies of its arguments afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.results: list[Any] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace != "hyenarec":
            return function(*args, **(kwargs or {}))
        name = function._schema.name.removeprefix("hyenarec::")
        self.calls.append((name, copied(args)))
        out = function(*args)
        self.results.append((out, copied(args)))
        return out


def copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    return type(value)(map(copied, value)) if isinstance(value, list | tuple) else value


@contextmanager
def recorded() -> Iterator[Recorder]:
    """Runs the reference without gradients and records its operator calls."""
    with torch.no_grad(), backends.use("reference"), Recorder() as recorder:
        yield recorder


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for part in value for t in tensors(part)] if isinstance(value, list | tuple) else []


def check_same(call: Call, want: Any, got: Any, tolerance: float) -> None:
    name = f"{call[0]} {[tuple(a.shape) if isinstance(a, Tensor) else a for a in call[1]]}"
    assert not isinstance(got[0], str), f"{name}: {got[0]}"
    pairs = list(zip(tensors(want), tensors(got), strict=True))
    assert pairs
    for w, g in pairs:
        assert (g.shape, g.dtype) == (w.shape, w.dtype), name
        if not w.is_floating_point():
            assert torch.equal(g, w), name
        elif w.numel():
            assert g.isfinite().all() and (g - w).double().norm() <= tolerance * w.double().norm(), name


def call_operator(operator: str, layout: str, dtype: torch.dtype, last_only: bool, **sizes: Any) -> None:
    """Calls an operator once with every argument that it has, and once with only the required ones."""
    case = Case.random(operator, dtype=dtype, last_only=last_only, **sizes)
    where, packed = Layout(layout, case.lengths), Layout("packed", case.lengths)
    parameters = {name: torch.as_tensor(value).to(dtype) for name, value in case.parameters.items()}
    gates = {}
    for name in ("pre_gate", "post_gate"):
        if name in case.rows:
            gates[name] = where.place(case.rows[name], dtype, 0.5)
    if "post_gate" in gates and last_only:
        gates["post_gate"] = torch.randn(len(case.lengths), case.dim).to(dtype)
    x, function = where.place(case.rows["x"], dtype, 0.5), getattr(hk, operator)
    function(x, **parameters, **gates, **case.options, **where.arguments())
    needed = {name: value for name, value in parameters.items() if name not in ("skip", "decay", "bias")}
    options = {name: value for name, value in case.options.items() if name != "activation"}
    rows = packed.place(case.rows["x"], dtype, 0.5)
    function(rows, **needed, **options, **packed.arguments(torch.int32))


def call_mixer(order: int, gate: Any, dtype: torch.dtype, horizon: int = 40) -> None:
    """Calls a mixer on whole histories in each layout, and then its step."""
    mixer = HyenaMixer(6, horizon, order=order, gate=gate, groups=3).to(dtype)
    x, lengths = torch.randn(3, 50, 6).to(dtype), torch.tensor([50, 0, 17])
    mixer(x)
    mixer(x, mask=torch.arange(50) >= 50 - lengths[:, None], last_only=True)
    mixer(x.flatten(0, 1), cu_seqlens=torch.tensor([0, 50, 50, 150]), last_only=True)
    _, state = mixer.prefill(x, lengths=lengths, starts=torch.tensor([0, 9, 3]))
    for row in x.unbind(1)[:3]:
        mixer.step(row, state)
        if order > 1:
            state.convolve(0, row, None, row)


Replayed = tuple[Recorder, list[Any]]


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> dict[torch.dtype, Replayed]:
    """Calls of every kind in every dtype: what the reference computes, and what one process without Python computes."""
    recorders = {}
    for dtype in TOLERANCE:
        torch.manual_seed(0)
        with recorded() as recorders[dtype]:
            call_all(dtype)
    calls = [call for recorder in recorders.values() for call in recorder.calls]
    answers = iter(without_python(calls, tmp_path_factory.mktemp("replayed")))
    return {dtype: (recorder, [next(answers) for _ in recorder.calls]) for dtype, recorder in recorders.items()}


def call_all(dtype: torch.dtype) -> None:
    long = {"lengths": (900, 0, 1, 300), "dim": 4, "groups": 2}
    for operator in OPERATORS:
        for layout in LAYOUTS:
            for last_only in (False, True) if operator != "short_conv" else (False,):
                call_operator(operator, layout, dtype, last_only)
    for taps in (700, 1300):  # in block form: sequences longer than the filter, and shorter ones
        for terms in (1, 7, 20):
            call_operator("legendre_conv", "left", dtype, False, taps=taps, terms=terms, **long)
        call_operator("legendre_conv", "left", dtype, False, taps=taps, terms=50, **long)  # too many terms for blocks
    for order, gate in ((1, "identity"), (2, "silu"), (3, "none")):
        call_mixer(order, gate, dtype)
    call_mixer(2, "identity", dtype, 9)  # its state is a ring of rows
    mixer = HyenaMixer(6, 1024, order=3, terms=4).to(dtype)
    x = torch.randn(2, 255, 6).to(dtype)
    (_, state), (_, parts) = (mixer.prefill(x, state="compact") for _ in range(2))
    assert isinstance(parts, CompactState)
    for row in torch.randn(3, 2, 6).to(dtype):
        mixer.step(row, state)
        parts.convolve(1, parts.convolve(0, row, None, None), row, None)
        parts.steps.add_(1)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_operators_give_the_same_without_python(dtype: torch.dtype, replayed: dict[torch.dtype, Replayed]) -> None:
    recorder, answers = replayed[dtype]
    whole_steps = set() if dtype in (torch.float32, torch.float64) else {"mixer_step"}
    assert {name for name, _ in recorder.calls} == set(NAMES) - whole_steps
    for call, want, got in zip(recorder.calls, recorder.results, answers, strict=True):
        check_same(call, want, got, TOLERANCE[dtype])


def test_decays_without_python(tmp_path: Path) -> None:
    """Without Python, results equal the reference's with decays that are zero, so fast that only lag 0 remains, or NaN.
    NaN stays in its own channels."""
    x, coefficients = torch.randn(2, 300, 4), torch.randn(2, 3)
    calls: list[Call] = []
    for decay in ([0.0, 1e-3], [5e4, torch.inf], [torch.nan, 2.0]):
        for taps in (1, 20, 250):
            for last_only in (False, True):
                where = (None, None, None, None, None, taps, last_only)
                calls.append(("legendre_conv", (x, coefficients, torch.tensor(decay), *where)))
    for (name, arguments), (got, _) in zip(calls, without_python(calls, tmp_path), strict=True):
        with backends.use("reference"):
            want = getattr(torch.ops.hyenarec, name)(*arguments)
        torch.testing.assert_close(got, want, equal_nan=True, rtol=1e-5, atol=1e-4)


def test_values_are_refused_without_python(tmp_path: Path) -> None:
    x, filter = torch.randn(3, 20, 4), torch.randn(2, 5)
    none = (None,) * 3
    lengths, cu = torch.tensor([20, 25, 5]), torch.tensor([0, 30, 20, 60])
    mask = torch.ones(3, 20, dtype=torch.int64)
    holes, large = mask.clone(), mask.clone()
    holes[1, 7], large[1, 7] = 0, 2
    refused: list[tuple[str, tuple[Any, ...], str]] = [
        ("segments", (None, lengths, 20, False, "op"), "op: row 1 runs from 0 to 25 .* within its 20 positions"),
        ("segments", (lengths - 25, lengths, 20, False, "op"), "op: row 0 runs from -5 to 20"),
        ("segments", (cu[:-1], cu[1:], 60, True, "op"), "op: cu_seqlens must not decrease, but goes from 30 to 20"),
        ("segments", (cu[:1] + 2, cu[-1:], 60, True, "op"), "op: cu_seqlens must run from 0 to the 60 .* got 2 to 60"),
        ("segments", (cu[:1], cu[1:2], 60, True, "op"), "op: cu_seqlens must run from 0 to the 60 .* got 0 to 30"),
        ("segments", (None, lengths.float(), 20, False, "op"), "ends: expected 3 values of int32 or int64"),
        ("runs", (holes, "op"), "op: the real positions of a mask must be one run a row; row 1 has 2 runs"),
        ("runs", (large, "op"), "op: mask must hold 0 and 1 alone, got 2"),
        ("runs", (mask.float(), "op"), "op: mask must be bool or integers"),
        ("long_conv", (x, filter, *none, None, lengths, False), "row 1 runs from 0 to 25"),
        ("long_conv", (x, filter[:, :0], *none, None, None, False), r"filter: expected \(G, K\) with K >= 1"),
        ("long_conv", (x, torch.randn(3, 5), *none, None, None, False), "filter: .* G a divisor of the 4 channels"),
        ("long_conv", (x, filter, None, x[:2], None, None, None, False), "pre_gate: expected"),
        ("long_conv", (x, filter, torch.randn(3), None, None, None, None, False), "skip: expected 4"),
        ("legendre_conv", (x, filter, torch.tensor([1.0, -2.0]), *none, None, None, 9, False), "decay must .* got -2"),
        ("legendre_conv", (x, filter, torch.ones(4), *none, None, None, 9, False), "decay: expected 2 values"),
        ("legendre_conv", (x, filter, None, *none, None, None, 0, False), "horizon: expected at least 1, got 0"),
        ("short_conv", (x, filter, None, None, None, ""), r"weight: expected \(C, W\)"),
        ("short_conv", (x, torch.randn(4, 3), None, None, None, "gelu"), "activation: expected none or silu, got gelu"),
        ("gated_short_conv", (x, torch.randn(4, 3), None, None, None, 3), "dim: 3 is no divisor of 4"),
    ]  # fmt: skip
    answers = without_python([(name, arguments) for name, arguments, _ in refused], tmp_path)
    for (name, _, message), (got, _) in zip(refused, answers, strict=True):
        assert isinstance(got, str) and re.search(message, got), f"{name}: {got}, and not: {message}"


def test_both_languages_define_the_same_schemas() -> None:
    program = """
import sys, torch
torch.ops.load_library(sys.argv[1])
for name in sys.argv[2:]:
    print(torch._C._get_schema(f"hyenarec::{name}", ""))
"""
    schemas = [str(torch._C._get_schema(f"hyenarec::{name}", "")) for name in NAMES]
    assert run(program, library(), *NAMES).splitlines() == schemas


def test_python_takes_the_operators_over() -> None:
    """An operator object obtained from the library runs Python's implementation once the package is imported, with
    gradients, tags and forced backends."""
    run(
        """
import sys, torch
torch.ops.load_library(sys.argv[1])
held = torch.ops.hyenarec.long_conv.default
call = (torch.randn(2, 9, 4), torch.randn(2, 3), None, None, None, None, None, False)
before = held(*call)
import hyenarec_kernels as hk
torch.testing.assert_close(held(*call), before)
out = hk.long_conv(call[0], call[1].requires_grad_())
out.sum().backward()
assert call[1].grad is not None
assert torch.Tag.pt2_compliant_tag in torch.ops.hyenarec.short_conv.default.tags
calls = []
reference = hk.backends.reference
kept, reference.long_conv = reference.long_conv, lambda *a: calls.append(a) or kept(*a)
with hk.backends.use("reference"):
    held(*call)
assert len(calls) == 1
torch.ops.load_library(sys.argv[1])  # again, and nothing changes
assert hk.long_conv(*call[:2]).requires_grad
""",
        library(),
    )


def test_operators_that_exist_stay() -> None:
    """The library leaves alone operators that already exist: the package without its compiled part defines them, and a
    library from elsewhere may be loaded afterwards."""
    run(
        """
import sys, torch
torch.library.define("hyenarec::runs", "(Tensor mask, str op) -> (Tensor, Tensor)")
torch.library.impl("hyenarec::runs", "default", lambda mask, op: (mask + 1, mask + 2))
torch.ops.load_library(sys.argv[1])
assert torch.ops.hyenarec.runs(torch.zeros(1), "op")[1].item() == 2
assert not hasattr(torch.ops.hyenarec, "long_conv")
assert torch.ops.hyenarec_cpu.interface() > 0
""",
        library(),
    )


class _Mixers(torch.nn.Module):
    """Two mixers with long filters, one of which is explicit."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = HyenaMixer(8, 300, order=3, terms=8), HyenaMixer(8, 20, filter="explicit")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x))
        return y


class _Layout(torch.nn.Module):
    def __init__(self, layout: str) -> None:
        super().__init__()
        self.mixer, self.layout = HyenaMixer(8, 40), layout

    def forward(self, x: Tensor, where: Tensor) -> Tensor:
        y: Tensor = self.mixer(x, **{self.layout: where}, last_only=self.layout != "mask")
        return y


def package(module: torch.nn.Module, inputs: tuple[Tensor, ...], path: Path) -> str:
    """Compiles a package that accepts any batch size and length."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    auto = torch.export.Dim.AUTO
    sizes = [{i: auto for i in range(t.dim()) if t.shape[i] != 8} for t in inputs]
    program = torch.export.export(module.eval(), inputs, dynamic_shapes=(*sizes,))
    once = {"aot_inductor.precompile_headers": False}  # precompiling pays only from the second package on
    made: str = torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=once)
    return made


def check_package(module: torch.nn.Module, made: str, calls: list[tuple[Tensor, ...]], folder: Path) -> None:
    torch.save(calls, folder / "inputs.pt")
    run(RUN_PACKAGE, library(), made, folder / "inputs.pt", folder / "outputs.pt")
    for found in torch.load(folder / "outputs.pt"):
        for call, got in zip(calls, found, strict=True):
            with torch.no_grad():
                want = module(*call)
            assert got.shape == want.shape and (got - want).norm() <= 1e-5 * want.norm()


@pytest.fixture(scope="module")
def mixers(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, str]:
    module = _Mixers()
    return module, package(module, (torch.randn(3, 17, 8),), tmp_path_factory.mktemp("package") / "mixers.pt2")


def test_a_package_runs_without_python(mixers: tuple[torch.nn.Module, str], tmp_path: Path) -> None:
    """A package runs at other batch sizes and lengths, also after Python has taken over the operators."""
    shapes = ((3, 17), (2, 1000), (5, 5))
    check_package(*mixers, [(torch.randn(*shape, 8),) for shape in shapes], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["lengths", "mask", "cu_seqlens"])
def test_packages_of_every_layout_run_without_python(layout: str, tmp_path: Path) -> None:
    def inputs(batch: int, length: int) -> tuple[Tensor, Tensor]:
        x, lengths = torch.randn(batch, length, 8), torch.arange(1, batch + 1)
        if layout == "cu_seqlens":
            return x.flatten(0, 1), torch.arange(0, batch * length + 1, length)
        return x, lengths if layout == "lengths" else torch.arange(length) < lengths[:, None]

    module = _Layout(layout)
    made = package(module, inputs(4, 17), tmp_path / "layout.pt2")
    check_package(module, made, [inputs(4, 17), inputs(3, 70)], tmp_path)


@pytest.mark.slow
def test_a_package_runs_in_a_cpp_program(mixers: tuple[torch.nn.Module, str], tmp_path: Path) -> None:
    module, made = mixers
    torch_folder, program = Path(torch.__file__).parent, tmp_path / "program"
    libraries = [f"-L{torch_folder}/lib", f"-Wl,-rpath,{torch_folder}/lib", "-Wl,--no-as-needed"]
    libraries += ["-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]
    build = ["g++", "-std=c++20", f"-I{torch_folder}/include", str(PACKAGE_PROGRAM), "-o", str(program), *libraries]
    subprocess.run(build, check=True)
    x = torch.randn(2, 400, 8)
    (tmp_path / "input").write_bytes(x.numpy().tobytes())
    arguments = (library(), made, tmp_path / "input", tmp_path / "output", *x.shape)
    subprocess.run([str(program), *map(str, arguments)], check=True)
    got = torch.frombuffer(bytearray((tmp_path / "output").read_bytes()), dtype=torch.float32).view(x.shape)
    with torch.no_grad():
        want = module(x)
    assert (got - want).norm() <= 1e-5 * want.norm()
