"""The Hyena mixer equals its equations, in every layout."""

from __future__ import annotations

import copy

import numpy as np
import operator_oracle as oracle
import pytest
import torch
from operator_cases import LAYOUTS, Layout
from torch import Tensor, nn

from hyenarec_kernels.nn import ExplicitFilter, HyenaMixer, LegendreFilter
from hyenarec_kernels.nn.projections import SCALE

LENGTHS = (7, 0, 1, 12, 2)
GATES = {"identity": lambda q: q, "sigmoid": oracle.sigmoid, "silu": lambda q: q * oracle.sigmoid(q)}


def by_equations(mixer: HyenaMixer, x: np.ndarray) -> np.ndarray:
    """The mixer's output for one sequence (n, D), in float64."""
    p = {name: value.detach().numpy() for name, value in mixer.named_parameters()}
    # Stored weights are differences: of projections from the identity, and of outer gates from 1.
    gates = 0 if mixer.gate == "none" else mixer.order
    w_in = np.concatenate([np.zeros((gates * mixer.dim, mixer.dim)), np.eye(mixer.dim)]) + SCALE * p["in_proj.weight"]
    w_out = np.eye(mixer.dim) + SCALE * p["out_proj.weight"]
    taps, bias = p["short_weight"].copy(), p["short_bias"].copy()
    taps[:, 0] += 1
    for gate in {0, gates - 1} if gates else ():
        bias[gate * mixer.dim : (gate + 1) * mixer.dim] += 1
    z = oracle.short_conv(x @ w_in.T, taps, bias, silu=False)
    *q, v = np.split(z, z.shape[1] // mixer.dim, axis=1)
    one = np.ones_like(v)
    q = q or [one] * mixer.order
    for i, filter in enumerate(mixer.filters):
        h = np.repeat(filter().detach().numpy(), mixer.dim // filter.groups, 0)
        v = oracle.long_conv(v, h, p["skip"][i], q[i], one)
    gate = one if mixer.gate == "none" else GATES[mixer.gate](q[-1])
    return (gate * v) @ w_out.T


def place(layout: str, rows: list[np.ndarray], fill: float = float("nan")) -> tuple[Tensor, dict[str, Tensor]]:
    where = Layout(layout, [len(r) for r in rows])
    return where.place(rows, torch.float64, fill), where.arguments()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("order", "gate", "groups", "short_width", "horizon"),
    [(1, "silu", 4, 3, 5), (2, "identity", 4, 3, 5), (2, "sigmoid", 2, 4, 30), (3, "silu", 1, 1, 3)]
    + [(order, "none", 2, 3, 5) for order in (1, 2, 3)],
)
def test_mixer_follows_its_equations(
    layout: str, order: int, gate: str, groups: int, short_width: int, horizon: int, backend: str
) -> None:
    mixer = HyenaMixer(
        4, horizon, order=order, gate=gate, groups=groups, short_width=short_width, filter="chebyshev", terms=3
    ).double()
    for zeros in (mixer.short_bias, mixer.skip):
        if zeros is not None:
            torch.nn.init.normal_(zeros)
    lengths = (8, 8) if layout == "full" else LENGTHS
    rows = [np.random.default_rng(n).standard_normal((n, 4)) for n in lengths]
    x, where = place(layout, rows)
    want = [by_equations(mixer, r) for r in rows]
    for got, expected in zip(Layout(layout, lengths).take(mixer(x, **where)), want, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-11)
    last = mixer(x, last_only=True, **where).detach().numpy()
    for got, expected in zip(last, want, strict=True):
        np.testing.assert_allclose(got, expected[-1] if len(expected) else 0 * got, atol=1e-11)


@pytest.mark.parametrize("layout", LAYOUTS[1:])
@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize("horizon", [3, 40])
def test_contract_2_padding_never_reaches_a_gradient(layout: str, last_only: bool, horizon: int, backend: str) -> None:
    """With NaN in the padding, values and gradients are those of running one sequence after the other."""
    mixer = HyenaMixer(4, horizon, terms=3).double()
    rows = [np.random.default_rng(n).standard_normal((n, 4)) for n in LENGTHS]
    x, where = place(layout, rows)
    x.requires_grad_()
    y = mixer(x, last_only=last_only, **where)
    parameters = list(mixer.parameters())
    gx, *got = torch.autograd.grad((y * y.sin()).sum(), [x, *parameters])
    alone = [torch.as_tensor(r)[None] for r in rows if len(r)]
    total = sum(((y := mixer(r, last_only=last_only)) * y.sin()).sum() for r in alone)
    for a, b in zip(got, torch.autograd.grad(total, parameters), strict=True):
        torch.testing.assert_close(a, b)
    assert gx.isfinite().all()
    Layout(layout, LENGTHS).take(gx)  # asserts zero in the padding


def test_mask_is_another_way_to_write_lengths() -> None:
    mixer = HyenaMixer(4, 6)
    x, lengths = torch.randn(3, 9, 4), torch.tensor([9, 0, 4])
    position = torch.arange(9)
    right, left = position < lengths[:, None], position >= 9 - lengths[:, None]
    for last_only in (False, True):
        torch.testing.assert_close(
            mixer(x, mask=right, last_only=last_only), mixer(x, lengths=lengths, last_only=last_only)
        )
        torch.testing.assert_close(
            mixer(x, mask=left, last_only=last_only),
            mixer(x, lengths=lengths, starts=9 - lengths, last_only=last_only),
        )


def test_mixer_takes_a_filter_of_ones_own() -> None:
    mixer = HyenaMixer(6, 9, order=3, groups=2, filter=ExplicitFilter)
    assert [type(f) for f in mixer.filters] == [ExplicitFilter] * 2
    assert mixer.filters[0]().shape == (2, 9)
    mixer = HyenaMixer(6, 9, filter=lambda groups, horizon: LegendreFilter(groups, horizon, terms=5))
    assert mixer.filters[0].weight.shape == (30,)


@pytest.mark.parametrize("horizon", [8, 200, 4096])
@pytest.mark.parametrize(("order", "gate"), [(1, "identity"), (2, "identity"), (3, "identity"), (2, "none")])
def test_output_scale_does_not_depend_on_the_horizon(horizon: int, order: int, gate: str) -> None:
    mixer = HyenaMixer(64, horizon, order=order, gate=gate)
    with torch.no_grad():
        scale = float(mixer(torch.randn(4, 400, 64)).std())
    assert 0.5 < scale < 3.5


@torch.no_grad()
@pytest.mark.parametrize(("order", "gate"), [(1, "identity"), (2, "identity"), (2, "none")])
def test_it_starts_near_its_filters_of_the_input_itself(order: int, gate: str) -> None:
    """The cosine of output and filtered input is 0.90 to 0.93 for five seeds; with random projections it is near 0."""
    torch.manual_seed(0)
    mixer, x = HyenaMixer(64, 200, order=order, gate=gate), torch.randn(3, 150, 64)
    expected = mixer.filters[0].convolve(x, mixer.skip[0]) if order > 1 else x
    assert torch.cosine_similarity(mixer(x), expected, dim=-1).mean() > 0.85
    mixer.out_proj.weight.copy_((torch.randn(64, 64) / 8 - torch.eye(64)) / SCALE)  # a random projection
    assert torch.cosine_similarity(mixer(x), expected, dim=-1).mean().abs() < 0.1


def test_mixer_under_autocast() -> None:
    mixer = HyenaMixer(8, 20)
    x = torch.randn(2, 30, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = mixer(x)
    assert y.dtype == torch.bfloat16
    want = mixer(x)
    assert (y.float() - want).norm() <= 2e-2 * want.norm()
    y.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in mixer.parameters())


def test_autocast_leaves_float64_alone() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert HyenaMixer(4, 5).double()(torch.randn(2, 6, 4).double()).dtype == torch.float64
        for mixer, x in (
            (HyenaMixer(4, 5), torch.randn(2, 6, 4).double()),
            (HyenaMixer(4, 5).double(), torch.randn(2, 6, 4)),
        ):
            with pytest.raises(ValueError, match=f"^HyenaMixer: x must be {mixer.skip.dtype} .* got {x.dtype}"):
                mixer(x)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("gate", ["silu", "none"])
def test_every_parameter_has_a_gradient(order: int, gate: str) -> None:
    """Data-parallel training waits for a gradient of every parameter, so each must get one."""
    mixer = HyenaMixer(4, 5, order=order, gate=gate)
    mixer(torch.randn(2, 6, 4)).sum().backward()
    assert all(p.numel() and p.grad is not None for p in mixer.parameters())


def test_timestamps_are_ignored() -> None:
    mixer, x = HyenaMixer(4, 5), torch.randn(2, 6, 4)
    torch.testing.assert_close(mixer(x, timestamps=torch.arange(12).view(2, 6)), mixer(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"order": 0}, "HyenaMixer: order must be at least 1, got 0"),
        ({"horizon": 0}, "HyenaMixer: horizon must be at least 1, got 0"),
        ({"short_width": 0}, "HyenaMixer: short_width must be at least 1, got 0"),
        ({"groups": 3}, "HyenaMixer: groups must be a divisor of dim 4, got 3"),
        ({"gate": "tanh"}, "HyenaMixer: gate must be identity, sigmoid, silu or none, got 'tanh'"),
        ({"filter": "fourier"}, "filter must be legendre, .* or a callable, got 'fourier'"),
        ({"filter": lambda groups, horizon: None}, "filter must make a Filter of 4 groups and 5 taps, got None"),
        ({"filter": ExplicitFilter(4, 5)}, "HyenaMixer: filter must be .* the class ExplicitFilter, got an instance"),
        ({"dtype": torch.int32}, "HyenaMixer: dtype must be float32, .* got torch.int32"),
        ({"dtype": torch.complex64}, "HyenaMixer: dtype must be float32, .* got torch.complex64"),
        ({"terms": 0}, "LegendreFilter: terms must be at least 1, got 0"),
    ],
)
def test_mixer_refuses_bad_options(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HyenaMixer(**{"dim": 4, "horizon": 5, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize("last_only", [False, True])
def test_mixer_refuses_bad_layouts(last_only: bool) -> None:
    mixer, x = HyenaMixer(4, 5), torch.randn(2, 6, 4)
    mask = torch.ones(2, 6, dtype=torch.bool)
    holes = mask.clone()
    holes[1, 3] = False
    for bad, where, message in (
        (x, {"mask": holes}, "one run a row; row 1 has 2 runs"),
        (x, {"mask": mask[:, :5]}, "mask must be bool"),
        (x, {"mask": mask.float()}, "mask must be bool"),
        (x, {"mask": 2 * mask.int()}, "mask must hold 0 and 1 alone, got 2"),
        (x, {"mask": mask, "lengths": torch.tensor([1, 2])}, "give one of them"),
        (x, {"cu_seqlens": torch.tensor([0, 12])}, "not cu_seqlens"),
        (x, {"starts": torch.tensor([0, 1])}, "starts was given without lengths"),
        (x, {"lengths": torch.tensor([7, 1])}, "does not lie within its 6 positions"),
        (x[0], {}, "needs cu_seqlens"),
        (x[0], {"cu_seqlens": torch.tensor([0, 5])}, "from 0 to the 6 rows of x, got 0 to 5"),
        (x[..., :3], {}, r"must be \(B, L, 4\) or \(T, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            mixer(bad, last_only=last_only, **where)


def test_projections_are_the_identity_and_their_weights_and_have_gradients() -> None:
    """This holds for plain layers and for layers that other libraries have put in their place."""
    mixer = HyenaMixer(3, 5).double()
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    w_in = torch.cat([torch.zeros(6, 3), torch.eye(3)]).double() + SCALE * mixer.in_proj.weight
    torch.testing.assert_close(mixer.project_in(x), x @ w_in.T)
    with torch.no_grad():
        torch.testing.assert_close(mixer.project_in(x), x @ w_in.T)
    adapted = copy.deepcopy(mixer)
    adapted.in_proj, adapted.out_proj = nn.Sequential(mixer.in_proj), nn.Sequential(mixer.out_proj)
    for project, want in ((adapted.project_in, mixer.project_in), (adapted.project_out, mixer.project_out)):
        torch.testing.assert_close(project(x), want(x))
    for project in (mixer.project_in, mixer.project_out):
        assert torch.autograd.gradcheck(project, x) and torch.autograd.gradgradcheck(project, x)
