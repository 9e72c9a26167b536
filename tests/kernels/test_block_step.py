"""The operator for a pre-norm block's step: its kernel gives the values and state of float64 and of its parts."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_mixer_step import OPTIONS, arguments, compiled, error, randomised, threads
from torch import Tensor
from torch.library import opcheck
from torch.nn.functional import gelu, layer_norm

from hyenarec_kernels import backends, native
from hyenarec_kernels.blocks import BlockWeights
from hyenarec_kernels.nn import HyenaMixer
from hyenarec_kernels.ops import block_step as module

__all__ = ["threads"]  # the fixture
OF_BLOCKS = [options for options in OPTIONS if "gate_dim" not in options]


def block_weights(dim: int, hidden: int, dtype: torch.dtype = torch.float32) -> BlockWeights:
    norms = [1 + 0.1 * torch.randn(dim), torch.randn(dim), 1 + 0.1 * torch.randn(dim), torch.randn(dim)]
    matrices = [torch.randn(dim, hidden) / dim**0.5, torch.randn(hidden), torch.randn(hidden, dim) / hidden**0.5]
    return in_dtype(BlockWeights(norms, [*matrices, torch.randn(dim)], 1e-5), dtype)


def in_dtype(weights: BlockWeights, dtype: torch.dtype) -> BlockWeights:
    norms, feed_forward = ([values.to(dtype) for values in part] for part in weights[:2])
    return BlockWeights(norms, feed_forward, weights.eps)


def block_arguments(weights: BlockWeights, mixer: HyenaMixer, x: Tensor, kind: Any = "exact") -> dict[str, Any]:
    given = arguments(mixer, mixer.init_state(len(x), state=kind), x)
    return {"x": given.pop("x")} | weights._asdict() | given


def formula(x: Tensor, weights: BlockWeights, mixer: HyenaMixer, approximate: str = "none") -> Tensor:
    """The block over whole histories (B, L, D)."""
    a, b, c, d = weights.norms
    up, up_bias, down, down_bias = weights.feed_forward
    x = x + mixer(layer_norm(x, x.shape[-1:], a, b, weights.eps))
    hidden = layer_norm(x, x.shape[-1:], c, d, weights.eps) @ up + up_bias
    return x + gelu(hidden, approximate=approximate) @ down + down_bias


@compiled
@pytest.mark.parametrize(("dim", "hidden"), [(1, 1), (5, 3), (16, 64), (37, 148), (64, 256), (130, 77)])
@pytest.mark.parametrize("options", OF_BLOCKS, ids=str)
def test_equals_float64(options: dict[str, Any], dim: int, hidden: int) -> None:
    """Steps in float32 equal every position of the formula in float64."""
    torch.manual_seed(0)
    mixer, weights = randomised(HyenaMixer(dim, 9, **options)), block_weights(dim, hidden)
    x = 2 + 3 * torch.randn(3, 14, dim)
    with torch.no_grad():
        with backends.use("reference"):
            want = formula(x.double(), in_dtype(weights, torch.float64), mixer.double())
        state = mixer.float().init_state(3)
        got = torch.stack([mixer.step(row, state, block=weights)[0] for row in x.unbind(1)], 1)
    assert error(got, want) < 1e-5
    assert state.steps.tolist() == [14] * 3


@compiled
@pytest.mark.parametrize("fault", ["other GELU", "other eps", "norms exchanged"])
def test_the_tolerance_tells_faults(fault: str) -> None:
    torch.manual_seed(0)
    mixer, weights, x = randomised(HyenaMixer(64, 9)), block_weights(64, 256), torch.randn(3, 1, 64)
    norms = weights.norms
    faults = {
        "other GELU": weights,
        "other eps": weights._replace(eps=1e-3),
        "norms exchanged": weights._replace(norms=[*norms[2:], *norms[:2]]),
    }
    with torch.no_grad():
        got = mixer.step(x[:, 0], mixer.init_state(3), block=weights)[0]
        approximate = "tanh" if fault == "other GELU" else "none"
        assert error(got, formula(x, faults[fault], mixer, approximate)[:, 0]) > 2e-5


@compiled
@pytest.mark.parametrize("kind", ["exact", "compact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_users_do_not_see_each_other(dtype: torch.dtype, kind: Any, threads: int) -> None:
    """Many users, divided over threads, get what each gets alone, and what the reference gives."""
    torch.manual_seed(0)
    mixer = randomised(HyenaMixer(64, 512, terms=8, gate="sigmoid").to(dtype))
    weights = block_weights(64, 256, dtype)
    with torch.no_grad():
        lengths = torch.randint(1, 130, (150,))
        _, together = mixer.prefill(torch.randn(150, 130, 64, dtype=dtype), lengths=lengths, state=kind)
        other, alone = together.index(slice(None)), [together.index(torch.tensor([user])) for user in range(150)]
        for _ in range(3):
            x = torch.randn(150, 64, dtype=dtype)
            got = mixer.step(x, together, block=weights)[0]
            with backends.use("reference"):
                want = mixer.step(x, other, block=weights)[0]
            assert error(got, want) < (1e-5 if dtype == torch.float32 else 1e-12)
            for user, state in enumerate(alone):
                torch.testing.assert_close(mixer.step(x[user : user + 1], state, block=weights)[0][0], got[user])
    for name, values in other.tensors().items():
        assert error(together.tensors()[name], values) < 1e-5, name


@compiled
def test_any_strides() -> None:
    torch.manual_seed(0)
    mixer, weights, x = randomised(HyenaMixer(10, 9)), block_weights(10, 12), torch.randn(3, 10)
    given = block_arguments(weights, mixer, x)
    want = module.block_step(*block_arguments(weights, mixer, x).values())

    def apart(values: Tensor) -> Tensor:
        return torch.stack([values, torch.full_like(values, torch.nan)], -1)[..., 0]

    given |= {"x": apart(x), "norms": [apart(v) for v in weights.norms]}
    given["feed_forward"] = [apart(v) for v in weights.feed_forward]
    torch.testing.assert_close(module.block_step(*given.values()), want)
    given = block_arguments(weights, mixer, x)
    given["feed_forward"] = [v.t().contiguous().t() for v in weights.feed_forward]  # as nn.Linear stores its matrices
    torch.testing.assert_close(module.block_step(*given.values()), want)


@compiled
def test_nan_stays_with_its_user() -> None:
    mixer, weights, x = HyenaMixer(40, 9), block_weights(40, 160), torch.randn(3, 40)
    x[1, 7] = torch.nan
    y = module.block_step(*block_arguments(weights, mixer, x).values())
    assert y[1].isnan().all() and y[[0, 2]].isfinite().all()
    none = module.block_step(*block_arguments(weights, mixer, x[:0]).values())
    assert none.shape == (0, 40)


@pytest.mark.parametrize("kind", ["exact", "compact"])
def test_torch_knows_what_it_writes_to(kind: Any) -> None:
    given = block_arguments(block_weights(4, 8), HyenaMixer(4, 512, terms=8), torch.randn(2, 4), kind)
    opcheck(torch.ops.hyenarec.block_step.default, tuple(given.values()))


def test_gradients_are_refused() -> None:
    given = block_arguments(block_weights(4, 8), HyenaMixer(4, 9), torch.randn(1, 4))
    given["norms"][0].requires_grad_()
    with pytest.raises(NotImplementedError, match=r"^block_step: it has no gradients"):
        module.block_step(*given.values())


@pytest.mark.parametrize("case", ["autocast", "half", "hook"])
def test_its_parts_serve_where_it_cannot(case: str) -> None:
    torch.manual_seed(0)
    mixer, weights, x = randomised(HyenaMixer(8, 9)), block_weights(8, 32), torch.randn(2, 1, 8)
    if case == "half":
        mixer, weights, x = mixer.bfloat16(), in_dtype(weights, torch.bfloat16), x.bfloat16()
    if case == "hook":
        mixer.out_proj.register_forward_hook(lambda layer, given, out: 2 * out)
    with torch.no_grad(), torch.autocast("cpu", enabled=case == "autocast"):
        want = formula(x, weights, mixer)[:, 0]
        got = mixer.step(x[:, 0], mixer.init_state(2), block=weights)[0]
    assert error(got, want) < (1e-5 if case == "hook" else 2e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norms": [torch.zeros(4)] * 3}, "block: norms and feed_forward must have 4 tensors each"),
        ({"norms": [torch.zeros(5)] * 4}, r"block: expected \(4,\) torch.float32 on cpu, got \(5,\)"),
        ({"norms": [torch.zeros(4).double()] * 4}, r"got \(4,\) torch.float64"),
        ({"feed_forward": [torch.zeros(4, 8)] * 4}, r"block: expected \(8,\) torch.float32 on cpu, got \(4, 8\)"),
    ],
)
def test_what_does_not_fit_the_mixer_is_refused(change: dict[str, Any], message: str) -> None:
    mixer, weights = HyenaMixer(4, 9), block_weights(4, 8)._replace(**change)
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        mixer.step(torch.randn(2, 4), mixer.init_state(2), block=weights)


def test_gates_from_other_channels_are_refused() -> None:
    mixer = HyenaMixer(4, 9, gate_dim=2)
    with torch.no_grad(), pytest.raises(ValueError, match="a mixer with gate_dim reads more than a block's 4 channels"):
        mixer.step(torch.randn(2, 6), mixer.init_state(2), block=block_weights(4, 8))


@compiled
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 5)}, r"x: expected \(B, D\) beside w_out"),
        ({"x": torch.zeros(2, 4).bfloat16()}, "x: expected float32 or float64"),
        ({"norms": [torch.zeros(4)] * 3}, "norms: expected 4 tensors, got 3"),
        ({"norms": [torch.zeros(3)] * 4}, "norms: expected 4 values"),
        ({"feed_forward": []}, "feed_forward: expected"),
        ({"feed_forward": [torch.zeros(4, 8)] * 4}, "feed_forward: expected 8 values"),
        (
            {"feed_forward": [torch.zeros(4, 8), torch.zeros(8), torch.zeros(4, 8), torch.zeros(4)]},
            r"expected \(8, 4\)",
        ),
        ({"steps": torch.zeros(3, dtype=torch.int64)}, "steps: expected 2 int64"),
        ({"memory": []}, "memory and tables: expected page and near"),
    ],
)
def test_what_would_be_read_out_of_bounds_is_refused(change: dict[str, Any], message: str) -> None:
    given = block_arguments(block_weights(4, 8), HyenaMixer(4, 9), torch.randn(2, 4)) | change
    with pytest.raises(RuntimeError, match=message):
        torch.ops.hyenarec_cpu.block_step(*given.values())


@compiled
@pytest.mark.slow
def test_a_package_calls_it_directly(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")

    class Step(torch.nn.Module):
        def forward(self, x: Tensor, *tensors: Tensor) -> Tensor:
            given = dict(zip(names, tensors, strict=True))
            return mixer.step(x, state.with_tensors(given), block=weights)[0]

    torch.manual_seed(0)
    mixer, weights = randomised(HyenaMixer(8, 512, terms=8, gate="silu")), block_weights(8, 32)
    with torch.no_grad():
        _, state = mixer.prefill(torch.randn(3, 127, 8), state="compact")
        names, x, other = list(state.tensors()), torch.randn(3, 8), state.index(slice(None))
        inputs = (x, *(values.contiguous() for values in state.tensors().values()))
        program = native.use_native(torch.export.export(Step(), tuple(values.clone() for values in inputs)))
        path = str(tmp_path / "step.pt2")
        torch._inductor.aoti_compile_and_package(program, package_path=path, inductor_configs=native.called_directly())
        run = torch._inductor.aoti_load_package(path)
        for _ in range(3):
            torch.testing.assert_close(run(*inputs), mixer.step(x, other, block=weights)[0])
        inputs[1 + names.index("steps")].fill_(-1)
        with pytest.raises(RuntimeError, match=r"block_step|run_func_"):
            run(*inputs)
    assert re.search("hyenarec: block_step: .*steps: below 0", capfd.readouterr().err)
