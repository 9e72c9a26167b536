"""One step of a gated causal convolution: streaming, one event at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hyenarec_kernels import backends
from hyenarec_kernels.dtypes import wide
from hyenarec_kernels.library import LIBRARY, NAMESPACE, define
from hyenarec_kernels.ops.checks import DTYPES, check_gate, check_tensor
from hyenarec_kernels.tracing import transformed


def conv_step(
    x: Tensor,
    history: Tensor,
    taps: Tensor,
    steps: Tensor,
    *,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
) -> Tensor:
    """The next output of :func:`hyenarec_kernels.long_conv` for each of B sequences, at K multiply-adds per channel.

        u = pre_gate * x
        y[b, d] = taps[K-1, d] * u[b, d] + sum_{0 < lag < K} taps[K-1-lag, d] * (the u of `lag` events ago)[b, d]
        out = post_gate * y

    It writes to ``history`` and so has no gradients: call it under `torch.no_grad`.

    Args:
        x: (B, D), the newest event of each sequence.
        history: (B, K-1, D), float32 (float64 if ``x`` is float64): a ring buffer of past ``u`` for each sequence.
            Written to: ``u`` replaces the oldest row of the ring, ``steps[b] % (K-1)``.
        taps: (K, D) in the dtype of ``history``, the largest lag first; to have a ``skip``, add it to lag 0, the last
            row.
        steps: (B,) int64, how many steps each sequence has taken with this ``history``; not changed, so the caller adds
            1 after each call.
        pre_gate, post_gate: the shape and dtype of ``x``.

    Returns:
        (B, D) in the dtype of ``x``.

    Raises:
        ValueError: an argument has a shape, dtype or device that does not fit, or rows of ``history`` share memory.
        NotImplementedError: gradients are enabled and an argument requires one, or a transform of `torch.func` is
            active.
    """
    op = "conv_step"
    for name, given in (("x", x), ("history", history), ("taps", taps), ("steps", steps)):
        check_tensor(op, name, given)
    if x.dim() != 2 or x.dtype not in DTYPES:
        raise ValueError(
            f"{op}: x must be (B, D) in float32, bfloat16, float16 or float64, got {tuple(x.shape)} {x.dtype}"
        )
    if taps.dim() != 2 or taps.shape[0] < 1:
        raise ValueError(f"{op}: taps must be (K, D) with K >= 1, got {tuple(taps.shape)}")
    slots, arithmetic = taps.shape[0] - 1, wide(x.dtype)
    for name, given, shape, dtype in (
        ("taps", taps, (slots + 1, x.shape[1]), arithmetic),
        ("history", history, (x.shape[0], slots, x.shape[1]), arithmetic),
        ("steps", steps, (x.shape[0],), torch.int64),
    ):
        if given.shape != shape or given.dtype != dtype:
            raise ValueError(
                f"{op}: {name} must be {shape} {dtype} beside {tuple(x.shape)} {x.dtype} x and {slots + 1} taps, "
                f"got {tuple(given.shape)} {given.dtype}"
            )
        if given.device != x.device:
            raise ValueError(f"{op}: {name} is on {given.device} and x on {x.device}; they must share a device")
    if any(stride == 0 and size > 1 for stride, size in zip(history.stride(), history.shape, strict=True)):
        raise ValueError(
            f"{op}: history is written to, so that its rows must not share memory: clone what expand() returned"
        )
    check_gate(op, "pre_gate", pre_gate, x.shape, x)
    check_gate(op, "post_gate", post_gate, x.shape, x)
    out: Tensor = torch.ops.hyenarec.conv_step(x, history, taps, steps, pre_gate, post_gate)
    return out


def refuse_gradients(op: str, instead: str, *arguments: Any) -> None:
    """Raises NotImplementedError if a derivative of these arguments is wanted. It would be lost silently, because the
    operator writes to a state."""
    given = [t for a in arguments for t in (a if isinstance(a, list | tuple) else (a,))]
    wanted = torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in given)
    if wanted or transformed():
        raise NotImplementedError(
            f"{op}: it has no gradients and works under no transform of torch.func; call it under torch.no_grad(), or "
            f"{instead}"
        )


def define_step(name: str, schema: str, width: Callable[..., int] = lambda x, *rest: x.shape[-1]) -> None:
    """Defines an operator that writes to a state. Its output has one row for each row of ``x``, its first argument;
    ``width`` computes the number of output channels from all arguments."""

    def dispatch(*arguments: Any) -> Tensor:
        out: Tensor = backends.implementation(backends.Call(name, name, arguments))(*arguments)
        return out

    def without_gradients(*arguments: Any) -> Tensor:
        refuse_gradients(name, "use long_conv for whole sequences", *arguments)
        with torch._C._AutoDispatchBelowAutograd():
            out: Tensor = getattr(torch.ops.hyenarec, name).default(*arguments)
        return out

    def without_vmap(*arguments: Any) -> Tensor:
        raise NotImplementedError(f"{name}: vmap over it is not supported; it takes a batch of sequences as it is")

    define(name, schema, dispatch)
    LIBRARY.impl(name, without_gradients, "Autograd")  # type: ignore[no-untyped-call]
    LIBRARY.impl(name, without_vmap, "FuncTorchBatched")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"{NAMESPACE}::{name}", lambda x, *rest: x.new_empty(x.shape[0], width(x, *rest)))


define_step(
    "conv_step",
    "(Tensor x, Tensor(a!) history, Tensor taps, Tensor steps, Tensor? pre_gate, Tensor? post_gate) -> Tensor",
)
