"""Checks for test_distributed.py: the operators and mixers on distributed tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from two_processes import check, whole

import hyenarec_kernels as hk
from hyenarec_kernels.nn import HyenaMixer
from hyenarec_kernels.ops.dropout import dropout

ROWS = ("x", "pre_gate", "post_gate")


def spread(value: Tensor, mesh: Any, placement: Any) -> Tensor:
    """Distributes a tensor that every process has; the result is a leaf."""
    from torch.distributed.tensor import distribute_tensor

    needs = value.requires_grad
    return distribute_tensor(value.detach(), mesh, [placement]).requires_grad_(needs)


def spread_rows(own: Tensor, mesh: Any) -> Tensor:
    """A distributed tensor of which each process's own tensor is one part."""
    from torch.distributed.tensor import DTensor, Shard

    return DTensor.from_local(own, mesh, [Shard(0)])


def values_and_gradients(call: Callable[..., Any], tensors: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    result = call(**tensors)
    outputs = [result] if isinstance(result, Tensor) else list(result)
    leaves = [t for t in tensors.values() if t.requires_grad]
    return outputs, list(torch.autograd.grad(outputs, leaves, [output.detach() for output in outputs]))


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def calls(layout: str) -> Iterator[tuple[str, Callable[..., Any], dict[str, Tensor], bool]]:
    """Yields a name, a function, its tensors, and whether the channels may be divided among processes."""
    where = {
        "padded": {},
        "lengths": {"lengths": [9, 0, 3, 5]},
        "starts": {"lengths": torch.tensor([9, 0, 3, 5]), "starts": torch.tensor([0, 1, 6, 2])},
        "packed": {"cu_seqlens": torch.tensor([0, 4, 4, 36])},
    }[layout]
    rows = (36,) if layout == "packed" else (4, 9)
    ends = (3,) if layout == "packed" else (4,)
    x, weight, skip = random(*rows, 8), random(8, 3), random(8)
    yield "short_conv", lambda **t: hk.short_conv(activation="silu", **t, **where), {"x": x, "weight": weight}, True
    given = {"x": random(*rows, 12), "weight": random(12, 3), "bias": random(12)}
    yield "gated_short_conv", lambda **t: hk.gated_short_conv(dim=4, **t, **where), given, False
    for groups, last_only in product((1, 2, 8), (False, True)):
        gates = {"pre_gate": random(*rows, 8), "post_gate": random(*ends, 8) if last_only else random(*rows, 8)}
        filters = {"filter": random(groups, 4)}
        series = {"coefficients": random(groups, 3), "decay": random(groups).detach().abs().requires_grad_()}

        def long(last_only: bool = last_only, **t: Tensor) -> Tensor:
            return hk.long_conv(**t, **where, last_only=last_only)

        def legendre(last_only: bool = last_only, **t: Tensor) -> Tensor:
            return hk.legendre_conv(**t, **where, horizon=5, last_only=last_only)

        name = f"{groups} groups, last_only={last_only}"
        yield f"long_conv, {name}", long, {"x": x, **filters, "skip": skip, **gates}, True
        yield f"legendre_conv, {name}", legendre, {"x": x, **series, "skip": skip, **gates}, True
    # DTensor caches how it dispatched a call. These calls differ only in which argument is absent or needs no gradient.
    for kept in ("pre_gate", "post_gate"):
        gated = {"x": x, "filter": filters["filter"], kept: random(*rows, 8)}
        yield f"{kept} alone", explicit(where), gated, True
    yield "x frozen", explicit(where), {"x": x.detach(), "filter": filters["filter"], "skip": skip}, True
    yield "filter frozen", explicit(where), {"x": x, "filter": filters["filter"].detach(), "skip": skip}, True


def explicit(where: dict[str, Any]) -> Callable[..., Tensor]:
    return lambda **t: hk.long_conv(**t, **where)


def agree(layout: str, mesh: Any, divided: str) -> None:
    from torch.distributed.tensor import Partial, Replicate, Shard
    from torch.distributed.tensor.debug import CommDebugMode

    def place(argument: str, value: Tensor) -> Any:
        if divided == "batch":
            return Shard(0) if argument in ROWS else Replicate()
        if divided == "channels":
            return Shard(value.dim() - 1) if argument in ROWS else Shard(0) if len(value) > 1 else Replicate()
        return Replicate()

    for name, call, tensors, channels in calls(layout):
        if divided == "channels" and not channels:
            continue
        placed = {argument: place(argument, value) for argument, value in tensors.items()}
        want = values_and_gradients(call, tensors)
        distributed = {argument: spread(value, mesh, placed[argument]) for argument, value in tensors.items()}
        with CommDebugMode() as communication:
            got = values_and_gradients(call, distributed)
        assert communication.get_total_counts() == 0, f"{name}: {communication.get_comm_counts()}"
        for output in got[0]:
            expected = {"batch": Shard(0), "channels": Shard(output.dim() - 1)}.get(divided, Replicate())
            assert output.placements == (expected,), f"{name}: {output.placements}"
        leaves = [argument for argument, value in tensors.items() if value.requires_grad]
        for argument, gradient in zip(leaves, got[1], strict=True):
            summed = divided and argument not in ROWS and placed[argument] == Replicate()
            assert gradient.placements == (Partial() if summed else placed[argument],), f"{name}: {argument}"
        for g, w in zip([*got[0], *got[1]], [*want[0], *want[1]], strict=True):
            assert_close(whole(g), w, msg=lambda m, name=name: f"{name}: {m}")


@check
def compiled_before_any_other_call(mesh: Any) -> None:
    from torch.distributed.tensor import Replicate, Shard

    def call(x: Tensor, h: Tensor, n: Tensor) -> Tensor:
        return hk.long_conv(x, h, lengths=n)

    x, h, n = torch.randn(4, 9, 8), torch.randn(8, 5), torch.tensor([9, 0, 3, 5])
    compiled = torch.compile(call, fullgraph=True, backend="eager")
    got = compiled(spread(x, mesh, Shard(0)), spread(h, mesh, Replicate()), n)
    assert_close(whole(got), call(x, h, n))


@check
def every_process_has_everything(mesh: Any) -> None:
    for layout in ("padded", "starts", "packed"):
        agree(layout, mesh, "")


@check
def the_batch_is_divided(mesh: Any) -> None:
    for layout in ("padded", "lengths", "starts"):
        agree(layout, mesh, "batch")


@check
def the_channels_are_divided(mesh: Any) -> None:
    for layout in ("padded", "starts", "packed"):
        agree(layout, mesh, "channels")


@check
def what_is_placed_otherwise_is_redistributed(mesh: Any) -> None:
    from torch.distributed.tensor import Replicate, Shard

    x, h = random(4, 9, 8), random(8, 5)
    for rows, filters in ((Shard(0), Shard(0)), (Shard(2), Shard(1)), (Replicate(), Shard(1))):
        got = values_and_gradients(hk.long_conv, {"x": spread(x, mesh, rows), "filter": spread(h, mesh, filters)})
        want = values_and_gradients(hk.long_conv, {"x": x, "filter": h})
        for g, w in zip([*got[0], *got[1]], [*want[0], *want[1]], strict=True):
            assert_close(whole(g), w)
    x, h = random(3, 9, 6), random(3, 5)  # a batch of 3, and 3 groups, on 2 processes
    for rows in (Shard(0), Shard(2)):
        got_one = hk.long_conv(spread(x, mesh, rows), spread(h, mesh, Replicate()), lengths=[9, 0, 4])
        assert_close(whole(got_one), hk.long_conv(x, h, lengths=[9, 0, 4]))


@check
def lengths_may_be_divided_with_the_batch(mesh: Any) -> None:
    from torch.distributed.tensor import Replicate, Shard

    x, h, n = torch.randn(4, 9, 6), torch.randn(3, 5), torch.tensor([9, 0, 3, 5])
    for placement, last_only in product((Replicate(), Shard(0)), (False, True)):
        got = hk.long_conv(
            spread(x, mesh, Shard(0)),
            spread(h, mesh, Replicate()),
            lengths=spread(n, mesh, placement),
            last_only=last_only,
        )
        assert_close(whole(got), hk.long_conv(x, h, lengths=n, last_only=last_only))


@check
def divided_positions_are_refused(mesh: Any) -> None:
    from torch.distributed.tensor import Replicate, Shard

    h, cu = spread(torch.randn(6, 5), mesh, Replicate()), torch.tensor([0, 8])
    for x, dimension, where in ((torch.randn(4, 8, 6), 1, {}), (torch.randn(8, 6), 0, {"cu_seqlens": cu})):
        for call in (hk.long_conv, hk.short_conv):
            with pytest.raises(NotImplementedError, match=rf"^{call.__name__}: x .* is divided over its positions"):
                call(spread(x, mesh, Shard(dimension)), h, **where)
    x = torch.randn(4, 8, 6)
    with pytest.raises(NotImplementedError, match=r"^long_conv: post_gate .* is divided over its positions"):
        hk.long_conv(spread(x, mesh, Replicate()), h, post_gate=spread(x, mesh, Shard(1)))


@check
def wrong_lengths_get_their_line(mesh: Any) -> None:
    from torch.distributed.tensor import Replicate, Shard

    x, h = spread(torch.randn(4, 8, 6), mesh, Shard(0)), spread(torch.randn(6, 5), mesh, Replicate())
    with pytest.raises(ValueError, match=r"^long_conv: row 1 runs from 0 to 9"):
        hk.long_conv(x, h, lengths=[8, 9, 1, 1])


@check
def inference_mode(mesh: Any) -> None:
    from torch.distributed.tensor import Replicate, Shard

    x, h = torch.randn(4, 9, 6), torch.randn(6, 3)
    with torch.inference_mode():
        got = hk.short_conv(spread(x, mesh, Shard(0)), spread(h, mesh, Replicate()))
    assert_close(whole(got), hk.short_conv(x, h))


@check
def dropout_has_one_mask(mesh: Any) -> None:
    from torch.distributed.tensor import Replicate, Shard

    x, seed = random(4, 9, 6), torch.tensor([3])
    for placement in (Replicate(), Shard(0), Shard(1)):
        parts = {"x": spread(x, mesh, placement), "seed": spread(seed, mesh, Replicate())}
        got, want = (
            values_and_gradients(lambda x, seed: dropout(x, 0.5, seed), t) for t in (parts, {"x": x, "seed": seed})
        )
        for g, w in zip([*got[0], *got[1]], [*want[0], *want[1]], strict=True):
            assert_close(whole(g), w)


@check
@torch.no_grad()
def a_step_writes_to_the_history_where_it_lies(mesh: Any) -> None:
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    x, gate, history, taps = torch.randn(4, 6), torch.randn(4, 6), torch.randn(4, 4, 6), torch.randn(5, 6)
    steps = torch.tensor([0, 3, 4, 9])
    for placements in (
        (Replicate(), Replicate(), Replicate(), Replicate()),
        (Shard(0), Shard(0), Replicate(), Shard(0)),
        (Shard(1), Shard(2), Shard(1), Replicate()),
        (Replicate(), Shard(0), Replicate(), Replicate()),
    ):
        kept = history.clone()
        want = hk.conv_step(x, kept, taps, steps, pre_gate=gate)
        args = [spread(t, mesh, p) for t, p in zip((x, history, taps, steps), placements, strict=True)]
        got = hk.conv_step(*args, pre_gate=spread(gate, mesh, placements[0]))
        assert_close(whole(got), want)
        assert_close(whole(args[1]), kept)
    summed = DTensor.from_local(history, mesh, [Partial()], run_check=False)
    with pytest.raises(NotImplementedError, match=r"^conv_step: history is written to where it lies"):
        hk.conv_step(spread(x, mesh, Replicate()), summed, *(spread(t, mesh, Replicate()) for t in (taps, steps)))


@check
def a_mixer_of_distributed_tensors(mesh: Any) -> None:
    from torch.distributed.tensor import Shard, distribute_module

    x, n = random(4, 9, 8), torch.tensor([9, 0, 3, 5])
    alone = HyenaMixer(8, 20, dtype=torch.float64)
    together = HyenaMixer(8, 20, dtype=torch.float64)
    together.load_state_dict(alone.state_dict())
    distribute_module(together, mesh)
    for where in ({}, {"lengths": n}, {"lengths": n, "starts": 9 - n}, {"mask": torch.arange(9) < n[:, None]}):
        for last_only in (False, True):
            outputs = (
                alone(x, last_only=last_only, **where),
                together(spread(x, mesh, Shard(0)), last_only=last_only, **where),
            )
            assert outputs[1].placements == (Shard(0),)
            assert_close(whole(outputs[1]), outputs[0])
            want, got = (
                torch.autograd.grad(y.square().sum(), list(m.parameters()))
                for y, m in zip(outputs, (alone, together), strict=True)
            )
            for g, w in zip(got, want, strict=True):
                assert_close(whole(g), w)


@check
def processes_agree_on_the_gates_that_are_dropped(mesh: Any) -> None:
    from torch.distributed.tensor import distribute_module

    mixer = HyenaMixer(8, 20, gate_dropout=0.5, dtype=torch.float64)
    distribute_module(mixer, mesh)
    torch.manual_seed(mesh.get_rank())  # processes would otherwise draw different gates
    drawn, own = mixer.draw_gates(), torch.rand(1)
    assert drawn is not None and not torch.equal(*whole(spread_rows(own, mesh)).chunk(2))
    first, second = whole(spread_rows(drawn.to_local(), mesh)).chunk(2)  # type: ignore[attr-defined]
    assert_close(first, second, rtol=0, atol=0)


@check
def a_mixer_of_every_filter_prefills(mesh: Any) -> None:
    from torch.distributed.tensor import Shard, distribute_module

    x, n = random(4, 9, 8).detach(), torch.tensor([9, 0, 3, 5])

    def pair(horizon: int, filter: str) -> tuple[HyenaMixer, HyenaMixer]:
        alone, together = (
            HyenaMixer(8, horizon, filter=filter, order=3, groups=2, dtype=torch.float64) for _ in range(2)
        )
        together.load_state_dict(alone.state_dict())
        distribute_module(together, mesh)
        return alone, together

    for filter in ("legendre", "chebyshev", "cosine", "implicit", "explicit", "logsparse"):
        alone, together = pair(16, filter)
        (y, state), (got, parts) = alone.prefill(x, lengths=n), together.prefill(spread(x, mesh, Shard(0)), lengths=n)
        assert_close(whole(got), y)
        for name in ("projected", "gated", "steps", "short_taps", "short_bias", "taps"):
            assert_close(whole(getattr(parts, name)), getattr(state, name))
        assert_close(whole(together.init_state(4).taps), alone.init_state(4).taps)
    alone, together = pair(40, "legendre")  # its state has pages of inputs when it is not distributed
    (_, state), (_, parts) = alone.prefill(x, lengths=n), together.prefill(spread(x, mesh, Shard(0)), lengths=n)
    for event in random(3, 4, 8).detach():
        want, got = alone.step(event, state)[0], together.step(spread(event, mesh, Shard(0)), parts)[0]
        assert_close(whole(got), want)


@check
def a_sharded_mixer_on_meta_gets_its_initial_values(mesh: Any) -> None:
    from torch.distributed.fsdp import fully_shard

    for filter in ("legendre", "chebyshev", "cosine", "implicit", "explicit", "logsparse"):
        with torch.device("meta"):
            mixer = HyenaMixer(8, 20, filter=filter, order=4)
        fully_shard(mixer, mesh=mesh)
        mixer.to_empty(device="cpu")
        mixer.reset_parameters()
        usual = HyenaMixer(8, 20, filter=filter, order=4)
        for name, value in usual.named_buffers():
            assert_close(mixer.get_buffer(name), value)
        for name, value in usual.named_parameters():  # random parameters have the usual deviation
            assert_close(whole(mixer.get_parameter(name)).std(), value.std(), rtol=0.5, atol=1e-6)
        for f, g in zip(mixer.filters, usual.filters, strict=True):
            if filter in ("legendre", "chebyshev", "cosine"):
                assert not whole(f.weight)[:: f.terms].any() and not g.weight[:: g.terms].any()
        gates = whole(mixer.in_proj.weight).view(5, 64).std(1)
        assert (gates[1:3] > 3 * gates[[0, 3, 4]].max()).all()  # the gates between two convolutions
        assert mixer(torch.randn(2, 9, 8)).isfinite().all()
