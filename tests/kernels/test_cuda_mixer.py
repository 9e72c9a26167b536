"""The cuda backend's whole pass of a mixer equals the definition in float64; without a GPU it runs on the host."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cuda_host import block_library, toeplitz_library
from cuda_ops import load
from test_joint import DIM, HORIZON, LAYOUTS, NAMES, answer, draw, make
from torch import Tensor

from hyenarec_kernels import backends
from hyenarec_kernels.backends import cuda, log
from hyenarec_kernels.nn import HyenaMixer, joint
from hyenarec_kernels.segments import Segments

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 6e-3}


@pytest.fixture(scope="session")
def host_kernels(tmp_path_factory: pytest.TempPathFactory) -> None:
    programs = [library(tmp_path_factory) for library in (toeplitz_library, block_library)]
    flags = [] if hasattr(torch.ops.hyenarec_cuda, "mixer") else ["-DHYENAREC_DEFINE"]
    load("mixer_host_ops.cpp", tmp_path_factory.mktemp("cuda") / "mixer.so", *flags, beside=programs)


Answers = dict[str, Tensor]


@pytest.fixture
def answers(device: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Answers, Answers]]:
    """Returns a mixer's outputs and gradients from the compiled operators, and from the definition in float64."""

    def both(mixer: HyenaMixer, x: Tensor, where: dict[str, Any]) -> tuple[Answers, Answers]:
        served: list[str] = []
        with monkeypatch.context() as patched:
            for name in ("mixer", "mixer_backward"):
                patched.setattr(cuda, name, seen(served, name))
            leaf = x.detach().to(device).requires_grad_(x.requires_grad)
            got = answer(copy.deepcopy(mixer).to(device), leaf, {name: t.to(device) for name, t in where.items()})
        assert served == ["mixer", "mixer_backward"]
        leaf = x.detach().double().requires_grad_(x.requires_grad)
        with backends.use("reference"), monkeypatch.context() as patched:
            patched.setattr(joint, "learned", lambda mixer, x: None)
            want = answer(copy.deepcopy(mixer).double(), leaf, where)
        for name in want:
            assert got[name].dtype == (x.dtype if name in ("x", "y") else mixer.short_weight.dtype), name
        return {name: t.cpu() for name, t in got.items()}, want

    return both


def seen(served: list[str], name: str) -> Callable[..., Any]:
    function = getattr(cuda, name)

    def run(*arguments: Any) -> Any:
        served.append(name)
        return function(*arguments)

    return run


def assert_close(got: Answers, want: Answers, tolerance: float) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        error = float((got[name].double() - value).norm() / value.norm().clamp_min(1e-3))
        assert error <= tolerance, (name, error)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "none"])
def test_definition(answers: Callable[..., tuple[Answers, Answers]], layout: str, dtype: torch.dtype) -> None:
    x, where = draw(layout, dtype)
    assert_close(*answers(make(dtype), x, where), TOLERANCE[dtype])


@pytest.mark.parametrize(
    "options",
    [{"window": False}, {"groups": 2}, {"short_width": 8}, {"horizon": 600}, {"horizon": 600, "window": False}],
)
def test_every_option(answers: Callable[..., tuple[Answers, Answers]], options: dict[str, Any]) -> None:
    """The pass is right with every option; a horizon of 600 takes the block form."""
    mixer = make(**options)
    x, where = torch.randn(620, DIM, requires_grad=True), {"cu_seqlens": torch.tensor([0, 7, 7, 615, 620])}
    x, where = (x, where) if mixer.horizon > HORIZON else draw("packed")
    assert_close(*answers(mixer, x, where), 1e-5)


@pytest.mark.parametrize("frozen", NAMES)
def test_one_gradient_fewer(answers: Callable[..., tuple[Answers, Answers]], frozen: str) -> None:
    mixer, (x, where) = make(), draw("packed")
    {"x": x, **dict(mixer.named_parameters())}[frozen].requires_grad_(False)
    assert_close(*answers(mixer, x, where), 1e-5)


def test_the_log_names_one_call(device: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(log, "enabled", lambda: True)
    caplog.set_level("INFO", logger="hyenarec_kernels")
    x, where = draw("packed")
    for _ in range(2):
        make().to(device)(x.to(device), cu_seqlens=where["cu_seqlens"].to(device))
    assert caplog.messages == [f"mixer: {device}, float32, packed: served by cuda, all operators in one call"]


def test_what_the_kernels_do_not_take(device: str) -> None:
    """The whole pass refuses what its kernels do not take; each operator then runs by itself."""
    for options in ({"short_width": 9}, {"horizon": 600, "terms": 100}):
        mixer = make(**options).to(device)
        x = torch.randn(1, 600, DIM, device=device)
        given = joint.learned(mixer, x)
        assert given is not None
        assert joint._whole("mixer", joint._settings(mixer, x, Segments()), x, given) is None
    mixer, x = make().to(device), torch.randn(1, 5, DIM, device=device)
    given = joint.learned(mixer, x)
    assert given is not None and joint._whole("mixer", joint._settings(mixer, x, Segments()), x, given) is not None
    with backends.use("reference"):
        assert joint._whole("mixer", joint._settings(mixer, x, Segments()), x, given) is None
