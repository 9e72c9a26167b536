"""Random operator calls: drawn from a seed, run through the package, and compared with the definition.

``python tests/fuzz/calls.py FIRST COUNT`` runs the calls of the seeds FIRST to FIRST + COUNT - 1. It prints a line for
each wrong result, and exits with 1 if there are any.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import definition
import numpy as np
import torch
from torch import Tensor

import hyenarec_kernels as hk

# Norm-wise relative error of each sequence's output and of each gradient: the contract of the operators.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}
PARAMETERS = ("filter", "coefficients", "decay", "weight", "bias", "skip")


@dataclass
class RandomCall:
    """One call: float64 values of each sequence and of the parameters, all of them representable in the call's dtype.

    ``rows`` holds an (n, D) tensor for each sequence. With ``last_only``, post_gate and grad are (1, D), or (0, D) for
    an empty sequence.
    """

    seed: int
    operator: str
    dtype: torch.dtype
    layout: str
    lengths: list[int]
    rows: dict[str, list[Tensor]]
    parameters: dict[str, Tensor]
    options: dict[str, Any]
    strided: bool
    starts: list[int] = field(default_factory=list)
    columns: int = 0

    @property
    def last_only(self) -> bool:
        return bool(self.options.get("last_only"))

    def __str__(self) -> str:
        shapes = {name: tuple(value.shape) for name, value in self.parameters.items()}
        dim = self.rows["x"][0].shape[1]
        return (
            f"seed {self.seed}: {self.operator} {self.dtype} {self.layout} lengths {self.lengths} D {dim} {shapes} "
            f"{self.options} gates {[name for name in self.rows if name.endswith('gate')]} strided {self.strided}"
        )


def draw(seed: int) -> RandomCall:
    """Draws the call that belongs to a seed."""
    rng = np.random.default_rng(seed)
    dtype = [torch.float64, torch.float32, torch.float32, torch.float16, torch.bfloat16][rng.integers(5)]
    operator = ["short_conv", "long_conv", "legendre_conv", "legendre_conv"][rng.integers(4)]
    layout = ["full", "right", "left", "middle", "packed"][rng.integers(5)]
    groups = int(rng.integers(1, 9))
    dim = groups * int(rng.integers(1, 9)) if rng.random() < 0.5 else groups
    longest = int(np.exp(rng.uniform(0, np.log(400))))
    count = int(rng.integers(1, 5))
    lengths = [longest] * count if layout == "full" else [int(rng.integers(0, longest + 1)) for _ in range(count)]
    last_only = operator != "short_conv" and rng.random() < 0.25

    def values(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.from_numpy(rng.standard_normal(shape) * scale).to(dtype).double()

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    outputs = [min(n, 1) if last_only else n for n in lengths]
    rows = {"x": [values(n, dim) for n in lengths], "grad": [values(n, dim) for n in outputs]}
    parameters: dict[str, Tensor] = {}
    options: dict[str, Any] = {}
    if operator == "short_conv":
        parameters["weight"] = values(dim, int(rng.integers(1, 12)))
        if rng.random() < 0.5:
            parameters["bias"] = values(dim)
        options["activation"] = "silu" if rng.random() < 0.5 else None
    else:
        horizon = int(np.exp(rng.uniform(0, np.log(1200))))
        if operator == "long_conv":
            parameters["filter"] = values(groups, horizon, scale=horizon**-0.5)
        else:
            terms = int(rng.integers(1, 65))
            parameters["coefficients"] = values(groups, terms, scale=(horizon * terms) ** -0.5)
            if rng.random() < 0.6:
                decay = np.exp(rng.uniform(-3, np.log(4 * horizon + 4), groups)) * (rng.random(groups) > 0.1)
                parameters["decay"] = torch.from_numpy(decay).to(wide).double()
            options["horizon"] = horizon
        if rng.random() < 0.6:
            parameters["skip"] = values(dim)
        for gate, like in (("pre_gate", lengths), ("post_gate", outputs)):
            if rng.random() < 0.6:
                rows[gate] = [values(n, dim) for n in like]
        options["last_only"] = last_only
    call = RandomCall(seed, operator, dtype, layout, lengths, rows, parameters, options, bool(rng.random() < 0.3))
    call.columns = longest + (0 if layout == "full" else int(rng.integers(0, 5)))
    room = [call.columns - n for n in lengths]
    call.starts = {"left": room, "middle": [int(rng.integers(0, r + 1)) for r in room]}.get(layout, [0] * count)
    return call


def expected(call: RandomCall) -> dict[str, list[Tensor]]:
    """By the definition: each sequence's output, and the gradients of ``sum(grad * out)``. A gradient of rows is a list
    over sequences; a parameter's gradient is a list with one tensor."""
    parameters = {name: value.clone().requires_grad_() for name, value in call.parameters.items()}
    found: dict[str, list[Tensor]] = {"out": []}
    total = torch.zeros((), dtype=torch.float64)
    leaves: dict[str, list[Tensor]] = {name: [] for name in call.rows if name != "grad"}
    for i in range(len(call.lengths)):
        rows = {name: call.rows[name][i].clone().requires_grad_() for name in leaves}
        for name, value in rows.items():
            leaves[name].append(value)
        if call.operator == "short_conv":
            silu = call.options["activation"] == "silu"
            out = definition.short_conv(rows["x"], parameters["weight"], parameters.get("bias"), silu)
        else:
            taps = parameters.get("filter")
            if taps is None:
                horizon = call.options["horizon"]
                taps = definition.legendre_taps(parameters["coefficients"], horizon, parameters.get("decay"))
            post = rows.get("post_gate")
            if call.last_only:
                whole = definition.long_conv(rows["x"], taps, parameters.get("skip"), rows.get("pre_gate"), None)
                out = whole[-1:] if post is None else post * whole[-1:]
            else:
                out = definition.long_conv(rows["x"], taps, parameters.get("skip"), rows.get("pre_gate"), post)
        found["out"].append(out.detach())
        total = total + (out * call.rows["grad"][i]).sum()
    wanted = [leaf for group in (*leaves.values(), list(parameters.values())) for leaf in group]
    gradients = iter(torch.autograd.grad(total, wanted, materialize_grads=True))
    for name, group in leaves.items():
        found[f"d{name}"] = [next(gradients) for _ in group]
    for name in parameters:
        found[f"d{name}"] = [next(gradients)]
    return found


def place(call: RandomCall, rows: list[Tensor], fill: float) -> Tensor:
    """Puts the rows of each sequence into a tensor of the call's layout; ``fill`` stands in the padding."""
    dim = call.rows["x"][0].shape[1]
    if len(rows) == 0 or call.layout == "packed":
        tensor = torch.cat(rows).to(call.dtype)
    else:
        tensor = torch.full((len(rows), call.columns, dim), fill, dtype=call.dtype)
        for b, part in enumerate(rows):
            tensor[b, call.starts[b] : call.starts[b] + len(part)] = part
    if call.strided:  # take every other channel of a wider tensor
        spread = torch.full((*tensor.shape[:-1], 2 * dim), float("nan"), dtype=call.dtype)
        spread[..., ::2] = tensor
        return spread[..., ::2]
    return tensor


def one_each(call: RandomCall, rows: list[Tensor], fill: float) -> Tensor:
    """The single rows of a ``last_only`` call as (S, D), with ``fill`` for an empty sequence."""
    dim = call.rows["x"][0].shape[1]
    tensor = torch.full((len(rows), dim), fill, dtype=call.dtype)
    for s, part in enumerate(rows):
        if len(part):
            tensor[s] = part[0]
    return tensor


def take(call: RandomCall, values: Tensor, each: bool) -> list[Tensor]:
    """The rows of each sequence in float64; raises AssertionError if the padding holds anything but zero."""
    values = values.detach().double()
    if each:
        parts = [values[s, None][: min(n, 1)] for s, n in enumerate(call.lengths)]
        rest = [values[s] for s, n in enumerate(call.lengths) if n == 0]
    elif call.layout == "packed":
        return list(values.split(call.lengths))
    else:
        spans = [slice(start, start + n) for start, n in zip(call.starts, call.lengths, strict=True)]
        parts = [values[b, span] for b, span in enumerate(spans)]
        rest = [torch.cat([values[b, : s.start], values[b, s.stop :]]) for b, s in enumerate(spans)]
    if any(bool((part != 0).any()) for part in rest):  # NaN counts as nonzero too
        raise AssertionError("padding is not zero")
    return parts


def run(call: RandomCall) -> dict[str, list[Tensor]]:
    """What the package returns for the call, in the form of :func:`expected`. All padding is NaN."""
    nan, wide = float("nan"), torch.float64 if call.dtype == torch.float64 else torch.float32
    each = {name for name in ("post_gate", "grad") if call.last_only}
    tensors = {
        name: (one_each if name in each else place)(call, rows, nan).requires_grad_(name != "grad")
        for name, rows in call.rows.items()
    }
    parameters = {name: value.to(wide).requires_grad_() for name, value in call.parameters.items()}
    lengths = torch.tensor(call.lengths)
    where: dict[str, Tensor] = {}
    if call.layout == "packed":
        where["cu_seqlens"] = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    elif call.layout != "full":
        where = {"lengths": lengths, "starts": torch.tensor(call.starts)}
    inputs = {name: tensor for name, tensor in tensors.items() if name not in ("x", "grad")}
    arguments: dict[str, Any] = {**parameters, **inputs, **where, **call.options}
    out = getattr(hk, call.operator)(tensors["x"], **arguments)
    leaves = {**{name: t for name, t in tensors.items() if name != "grad"}, **parameters}
    gradients = torch.autograd.grad(out, list(leaves.values()), tensors["grad"].nan_to_num(), materialize_grads=True)
    found = {"out": take(call, out, call.last_only)}
    for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
        if gradient.dtype != leaf.dtype:
            raise AssertionError(f"d{name} is {gradient.dtype}, not {leaf.dtype}")
        is_parameter = name in PARAMETERS
        found[f"d{name}"] = [gradient.double()] if is_parameter else take(call, gradient, name in each)
    return found


def faults(call: RandomCall) -> Iterator[str]:
    """Yields a line for each thing that is wrong with the call's result."""
    want = expected(call)
    try:
        got = run(call)
    except Exception as error:
        yield f"{type(error).__name__}: {error}"
        return
    for name, parts in want.items():
        for number, (found, exact) in enumerate(zip(got[name], parts, strict=True)):
            scale = float(exact.norm())
            error = float((found - exact).norm())
            if not error <= TOLERANCE[call.dtype] * scale:
                yield f"{name}[{number}] is off by {error:.1e} of {scale:.1e}"


def main(first: int, count: int) -> int:
    wrong = 0
    for seed in range(first, first + count):
        call = draw(seed)
        for fault in faults(call):
            wrong += 1
            print(f"{call}: {fault}")
    print(f"{count} calls, {wrong} faults")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
