"""Registers an operator and its backward with torch: schema, dispatch to a backend, fake, autograd, double backward.

Every operator of the package takes ``(tensors..., constants..., options...)`` and has one or more outputs. Its backward
takes ``(grads..., tensors..., constants..., options..., needs)``, with one grad per output, and returns one gradient
for each of ``tensors``: an empty ``(0,)`` tensor where ``needs`` is False or the tensor is None. One result is returned
as it is, several as a tuple. ``constants`` are tensors without gradients: the starts and ends of the sequences, unless
the operator does not deal with sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from hyenarec_kernels import backends, sharding
from hyenarec_kernels.backends import reference
from hyenarec_kernels.library import LIBRARY, NAMESPACE, define
from hyenarec_kernels.segments import check_segments
from hyenarec_kernels.tracing import direct, transformed

SEGMENTS = ("Tensor? starts", "Tensor? ends")


def register(
    name: str,
    tensors: Sequence[str],
    options: str,
    output_shapes: Callable[..., Sequence[Sequence[int]]],
    outputs: int = 1,
    constants: Sequence[str] = SEGMENTS,
    check: Callable[..., None] | None = None,
) -> Callable[..., Any]:
    """Defines ``hyenarec::name`` and ``hyenarec::name_backward``; returns the operator as Python calls it.

    Args:
        name: the operator.
        tensors: schema of each differentiable argument, ``x`` first.
        options: schema of the arguments after ``constants``; none of them a tensor.
        output_shapes: computes the shapes of the outputs from the operator's arguments.
        outputs: the number of outputs.
        constants: schema of each tensor that has no gradient.
        check: called with the operator's arguments, real tensors, before a backend is; raises if values are wrong.
    """
    count = len(tensors)
    arguments = ", ".join((*tensors, *constants, options))
    grads = ", ".join(f"Tensor grad_{i}" for i in range(outputs))
    backward_name = f"{name}_backward"
    where = slice(count, count + 2) if constants is SEGMENTS else None
    forward_call, backward_call = (
        _checked(name, name, slice(None), where, check),
        _checked(backward_name, name, slice(outputs, -1), where, None),
    )
    serve = _define(name, f"({arguments}) -> ({_tensors(outputs)})", forward_call)
    schema = f"({grads}, {arguments}, bool[{count}] needs) -> ({_tensors(count)})"
    serve_backward = _define(backward_name, schema, backward_call)

    def fake(x: Tensor, *rest: Any) -> Tensor | tuple[Tensor, ...]:
        return _one_or_all(x.new_empty(shape) for shape in output_shapes(x, *rest))

    def fake_backward(*call: Any) -> Tensor | tuple[Tensor, ...]:
        inputs, needs = call[outputs : outputs + count], call[-1]
        x: Tensor = inputs[0]
        return _one_or_all(
            t.new_empty(t.shape) if t is not None and need else x.new_empty(0)
            for t, need in zip(inputs, needs, strict=True)
        )

    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needs = list(ctx.needs_input_grad[:count])
        gradients = _all(call_backward(*grads, *ctx.saved_tensors, *ctx.options, needs))
        without = [None] * (len(ctx.needs_input_grad) - count)
        return *(g if need else None for g, need in zip(gradients, needs, strict=True)), *without

    def double_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad(), without_autocast(grads[0].device.type):
            # Views, so that a tensor that is passed as two arguments gets a gradient for each, and not their sum for
            # both.
            inputs = [None if t is None else t.view_as(t) for t in ctx.saved_tensors]
            outputs = _all(getattr(reference, backward_name)(*inputs, *ctx.options))
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if o.requires_grad]
        wanted = [t for t, need in zip(inputs, ctx.needs_input_grad, strict=False) if need and t is not None]
        found = iter(
            torch.autograd.grad(
                [o for o, _ in pairs], wanted, [g for _, g in pairs], create_graph=create_graph, allow_unused=True
            )
        )
        return tuple(next(found) if need else None for need in ctx.needs_input_grad)

    torch.library.register_fake(f"{NAMESPACE}::{name}", fake)
    torch.library.register_fake(f"{NAMESPACE}::{backward_name}", fake_backward)
    call_backward = _differentiate(backward_name, double_backward, backward_call, serve_backward)
    return _differentiate(name, backward, forward_call, serve)


def _differentiate(
    name: str,
    backward: Callable[..., tuple[Tensor | None, ...]],
    call: Callable[..., backends.Call],
    serve: Callable[..., Any],
) -> Callable[..., Any]:
    """Registers the gradients of an operator, and returns the function by which Python calls it.

    That function calls ``serve`` directly if nothing intercepts calls in torch's dispatcher (`direct`). Otherwise a
    call passes the dispatcher three times (above autograd, below it, and into the backend's own operator), each of
    which takes as long as ten `torch.add`.

    `torch.library.register_autograd` would give backward passes only: forward mode would silently give zeros, and
    `torch.func` would raise. For these the operator is the reference, whose PyTorch operations support both.
    """
    operator = getattr(torch.ops.hyenarec, name).default

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            tensors = [value for value in arguments if value is None or isinstance(value, Tensor)]
            ctx.save_for_backward(*tensors)
            ctx.options = arguments[len(tensors) :]
            with torch._C._AutoDispatchBelowAutograd():
                return serve(*arguments) if direct(tensors) else operator(*arguments)

    Differentiable.backward = staticmethod(backward)  # type: ignore[method-assign]
    Differentiable.__name__ = Differentiable.__qualname__ = name

    def autograd(*arguments: Any) -> Any:
        sharding.prepare(arguments[0])
        if transformed():
            return backends.under_transforms(call(*arguments))(*arguments)
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments):
            return Differentiable.apply(*arguments)  # type: ignore[no-untyped-call]
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*arguments)

    def entry(*arguments: Any) -> Any:
        if not direct(arguments):
            return operator(*arguments)
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments):
            return Differentiable.apply(*arguments)  # type: ignore[no-untyped-call]
        with torch._C._AutoDispatchBelowAutograd():
            return serve(*arguments)

    def batched(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        mapped = [i for i, dim in enumerate(in_dims) if dim is not None]
        for i in mapped:
            if not arguments[i].is_floating_point():
                raise NotImplementedError(f"{name}: vmap over lengths, starts, cu_seqlens or seeds is not supported")

        # One call per example, as if there were no vmap. Per-sample gradients do not come here: under their transform
        # the reference runs instead.
        examples = [
            operator(*(a.select(in_dims[i], n) if i in mapped else a for i, a in enumerate(arguments)))
            for n in range(info.batch_size)
        ]
        if isinstance(examples[0], Tensor):
            return torch.stack(examples), 0
        return tuple(torch.stack(outputs) for outputs in zip(*examples, strict=True)), (0,) * len(examples[0])

    LIBRARY.impl(name, autograd, "Autograd")  # type: ignore[no-untyped-call]
    torch.library.register_vmap(f"{NAMESPACE}::{name}", batched)
    return entry


def _one_or_all(results: Iterable[Tensor]) -> Tensor | tuple[Tensor, ...]:
    """Results as a schema returns them: a single one is not in a tuple."""
    made = tuple(results)
    return made if len(made) > 1 else made[0]


def _all(results: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else results


def _tensors(count: int) -> str:
    return ", ".join(["Tensor"] * count)


def _checked(
    name: str, operator: str, own: slice, where: slice | None, check: Callable[..., None] | None
) -> Callable[..., backends.Call]:
    """A function that checks arguments and makes the `Call` of ``operator`` or its backward. ``own`` selects the
    operator's arguments; ``where`` selects, among these, the starts and ends of sequences."""

    def call(*arguments: Any) -> backends.Call:
        made = backends.Call(name, operator, arguments[own])
        if where is not None:
            check_segments(operator, made.arguments[0], *made.arguments[where])
        if check is not None:
            check(*made.arguments)
        return made

    return call


def _define(name: str, schema: str, call: Callable[..., backends.Call]) -> Callable[..., Any]:
    """Defines an operator or its backward, and returns the function that implements it."""

    def dispatch(*arguments: Any) -> Any:
        made = call(*arguments)
        with without_autocast(made.arguments[0].device.type):
            results = backends.implementation(made)(*arguments)
        # The fakes promise contiguous results. A backend may return the strides of x where a result is all zeros.
        if isinstance(results, Tensor):
            return results.contiguous()
        return _one_or_all(result.contiguous() for result in results)

    define(name, schema, dispatch)
    return dispatch


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """Switches autocast off: backends choose their own precision, and it must not reach the matrix products inside."""
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # "meta" has none
    return torch.autocast(device, enabled=False) if on else nullcontext()
