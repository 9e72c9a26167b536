"""When a mixer's step is one call of its operator, when it runs in parts, and both in traced programs."""

from __future__ import annotations

import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_mixer_step import compiled, error, randomised
from torch import Tensor
from torch.nn.utils import parametrize

from hyenarec_kernels import backends, native
from hyenarec_kernels.backends import cpu
from hyenarec_kernels.nn import CompactState, HyenaMixer, MixerState


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records the names of the operators that are called."""
    made: list[str] = []
    implementation = backends.implementation

    def noted(call: backends.Call) -> Any:
        made.append(call.operator)
        return implementation(call)

    monkeypatch.setattr(backends, "implementation", noted)
    return made


@compiled
@pytest.mark.parametrize("kind", ["exact", "compact"])
def test_it_serves_the_mixer(kind: Any, calls: list[str]) -> None:
    mixer = HyenaMixer(8, 512)
    with torch.no_grad():
        state = mixer.init_state(1, state=kind)
        assert isinstance(state, MixerState if kind == "exact" else CompactState)
        assert mixer.step(torch.randn(1, 8), state)[1] is state and int(state.steps) == 1
    assert calls == ["mixer_step"]
    call = backends.Call("mixer_step", "mixer_step", (torch.randn(1, 8),))
    assert backends.implementation(call) is cpu.mixer_step
    half = call._replace(arguments=(torch.randn(1, 8).half(),))
    assert backends.implementation(half) is backends.reference.mixer_step


class Doubled(torch.nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


@pytest.mark.parametrize("case", ["autocast", "half", "hook", "parametrised", "other layer", "other method"])
def test_its_parts_serve_where_it_cannot(case: str, calls: list[str]) -> None:
    """Where the operator cannot serve, the step runs in parts, which call what a library has put in a layer's place."""
    torch.manual_seed(0)
    mixer, x = randomised(HyenaMixer(8, 9)), torch.randn(1, 8)
    if case == "half":
        mixer, x = mixer.bfloat16(), x.bfloat16()
    if case == "hook":
        mixer.out_proj.register_forward_hook(lambda layer, given, out: 2 * out)
    if case == "parametrised":
        parametrize.register_parametrization(mixer.in_proj, "weight", Doubled())
    if case == "other layer":
        mixer.in_proj = torch.nn.Sequential(mixer.in_proj)  # type: ignore[assignment]
    if case == "other method":
        out = mixer.project_out
        mixer.project_out = lambda v: 2 * out(v)  # type: ignore[method-assign]
    with torch.no_grad(), torch.autocast("cpu", enabled=case == "autocast"):
        want = mixer(x[:, None])[:, 0]
        calls.clear()
        got = mixer.step(x, mixer.init_state(1))[0]
    assert calls == ["conv_step", "conv_step"]
    assert error(got, want) < (2e-2 if case in ("autocast", "half") else 1e-5)


@pytest.mark.parametrize("change", [HyenaMixer.reset_parameters, HyenaMixer.double, None])
def test_new_weights_end_what_is_frozen(change: Any) -> None:
    mixer, other = HyenaMixer(8, 9), HyenaMixer(8, 9)
    mixer.freeze()
    if change is None:
        mixer.load_state_dict(other.state_dict())
    else:
        change(mixer)
    assert mixer.frozen is None
    x = torch.randn(2, 3, 8, dtype=mixer.skip.dtype)
    if change is None:
        torch.testing.assert_close(mixer(x), other(x))
    mixer(x).sum().backward()
    assert mixer.in_proj.weight.grad is not None


@compiled
def test_frozen_matrices_are_those_of_then(calls: list[str]) -> None:
    torch.manual_seed(0)
    mixer = randomised(HyenaMixer(8, 9, gate_dim=4))
    x = torch.randn(2, 3, 12)
    with torch.no_grad():
        want, unfrozen = mixer(x), mixer.matrices()
        mixer.freeze()
        assert unfrozen is not None and mixer.frozen is not None
        for plain, frozen in zip(unfrozen, mixer.frozen, strict=True):
            torch.testing.assert_close(frozen, plain)
            assert frozen.is_contiguous()
        mixer.in_proj.weight.zero_()
        mixer.out_proj.weight.zero_()
        torch.testing.assert_close(mixer(x), want)
        state = mixer.init_state(2)
        steps = torch.stack([mixer.step(row, state)[0] for row in x.unbind(1)], 1)
    torch.testing.assert_close(steps, want)


def test_a_forced_backend_without_it_serves_the_parts(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Parts:
        conv_step = staticmethod(backends.reference.conv_step)

    parts = backends.Backend(("cpu",), lambda: None, lambda: Parts)
    monkeypatch.setitem(backends.BACKENDS, "parts", parts)
    mixer = HyenaMixer(8, 9)
    with torch.no_grad(), backends.use("parts"):
        mixer.step(torch.randn(1, 8), mixer.init_state(1))
    assert calls == ["conv_step", "conv_step"]


@pytest.mark.parametrize("kind", ["exact", "compact"])
def test_a_compiled_step(kind: Any) -> None:
    """A compiled step is one graph, and writes into the state that it is given."""
    torch.manual_seed(0)
    mixer = randomised(HyenaMixer(8, 512, terms=8, gate="silu"))
    with torch.no_grad():
        state = mixer.prefill(torch.randn(3, 127, 8), state=kind)[1]
        other = state.index(slice(None))
        step = torch.compile(lambda x: mixer.step(x, other)[0], fullgraph=True, backend="aot_eager")
        for _ in range(3):
            x = torch.randn(3, 8)
            torch.testing.assert_close(step(x), mixer.step(x, state)[0])
    for name, values in state.tensors().items():
        torch.testing.assert_close(other.tensors()[name], values, msg=name)


@compiled
def test_compiled_and_exported_steps_refuse_what_does_not_fit() -> None:
    class Step(torch.nn.Module):
        def forward(self, x: Tensor, projected: Tensor) -> Tensor:
            return mixer.step(x, replace(state, projected=projected))[0]

    mixer = HyenaMixer(4, 9)
    with torch.no_grad():
        state = mixer.init_state(2)
        x, projected = torch.randn(2, 4), state.projected
        with pytest.raises(ValueError, match=r"projected must be \(2, 2, 12\)"):
            Step()(x, projected[:, :1])
        traced = torch.compile(Step(), fullgraph=True, backend="aot_eager")
        traced(x, projected)
        with pytest.raises((ValueError, RuntimeError), match=r"projected must be|Observed exception"):
            traced(x, projected[:, :1])
        program = torch.export.export(Step(), (x, projected)).module()
        program(x, projected)
        with pytest.raises((AssertionError, RuntimeError)):  # raised by torch's own guards
            program(x, projected[:, :1])


@compiled
@pytest.mark.slow
def test_a_package_calls_it_directly(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A package calls the operator as a C function, past torch's dispatcher. What it refuses becomes an error, whose
    reason is printed."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")

    class Step(torch.nn.Module):
        def forward(self, x: Tensor, *tensors: Tensor) -> Tensor:
            given = dict(zip(names, tensors, strict=True))
            return mixer.step(x, state.with_tensors(given))[0]

    torch.manual_seed(0)
    mixer = randomised(HyenaMixer(8, 512, order=3, terms=8, gate="silu"))
    with torch.no_grad():
        _, state = mixer.prefill(torch.randn(3, 127, 8), state="compact")
        names, x = list(state.tensors()), torch.randn(3, 8)
        other = state.index(slice(None))
        inputs = (x, *(values.contiguous() for values in state.tensors().values()))
        program = native.use_native(torch.export.export(Step(), tuple(values.clone() for values in inputs)))
        path = str(tmp_path / "step.pt2")
        torch._inductor.aoti_compile_and_package(program, package_path=path, inductor_configs=native.called_directly())
        with zipfile.ZipFile(path) as archive:
            sources = [archive.read(name).decode() for name in archive.namelist() if name.endswith(".wrapper.cpp")]
        assert any("ERROR_CODE_CHECK(aoti_torch_cpu_mixer_step(" in source for source in sources)
        run = torch._inductor.aoti_load_package(path)
        for _ in range(3):
            torch.testing.assert_close(run(*inputs), mixer.step(x, other)[0])
        for name, values in zip(names, inputs[1:], strict=True):
            torch.testing.assert_close(values, other.tensors()[name], msg=name)
        inputs[1 + names.index("steps")].fill_(-1)
        with pytest.raises(RuntimeError, match=r"mixer_step|run_func_"):
            run(*inputs)
    assert re.search("hyenarec: mixer_step: .*steps: below 0", capfd.readouterr().err)
