"""How the operators run on distributed tensors, `torch.distributed.tensor.DTensor`.

Each process runs an operator on its own part. Either every process holds everything, or the batch dimension of a padded
``x`` is divided over the processes, or its channels are:

| divided  | x, gates, outputs | parameters               | starts, ends | gradients of parameters |
|----------|-------------------|--------------------------|--------------|-------------------------|
| batch    | `Shard(0)`        | `Replicate()`            | `Shard(0)`   | `Partial()`             |
| channels | `Shard(-1)`       | `Shard(0)`               | `Replicate()`| `Shard(0)`              |
| channels | `Shard(-1)`       | `Replicate()` of one row | `Replicate()`| `Partial()`             |

DTensor redistributes arguments with other placements to the nearest of these. Division over positions is refused
instead: each output depends on events far back, so every process would have to gather the whole histories.

Importing `torch.distributed.tensor` takes half a second, and most programs do not need it. So these rules are
registered with DTensor only when the first distributed tensor arrives.
"""

from __future__ import annotations

import sys
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

Way = tuple[list[Any], list[Any]]  # placements of the outputs and of the arguments

BATCH, CHANNELS = "batch", "channels"
DIVISIONS = {
    "short_conv": (BATCH, CHANNELS),
    "gated_short_conv": (BATCH,),  # it multiplies the first channels with the last
    "long_conv": (BATCH, CHANNELS),
    "legendre_conv": (BATCH, CHANNELS),
    "conv_step": (BATCH, CHANNELS),
    "dropout": (),  # whether an element is kept depends on its place in the whole tensor
    "segments": (BATCH,),
    "runs": (BATCH,),
}
# For each division, the dimension in which an argument is divided. Arguments without an entry are replicated.
ROWS = ("x", "pre_gate", "post_gate", "grad_0", "grad_1")
PARAMETERS = ("weight", "bias", "filter", "coefficients", "decay", "skip")
DIMENSIONS: dict[str, dict[str, int]] = {
    BATCH: dict.fromkeys((*ROWS, "starts", "ends", "mask", "history", "steps"), 0),
    CHANNELS: dict.fromkeys((*ROWS, "history", "taps"), -1) | dict.fromkeys(PARAMETERS, 0),
}


def is_distributed(given: object) -> bool:
    """Whether ``given`` is a DTensor. Does not import the module that defines DTensor."""
    if type(given) in (Tensor, nn.Parameter):
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(given, module.DTensor)


def prepare(given: object) -> None:
    """Registers the rules above if ``given`` is a DTensor; must run before an operator gets ``given``."""
    if is_distributed(given):
        _register()


def beside(x: Tensor, given: Tensor) -> Tensor:
    """``given``, which must be equal in every process; as a replicated DTensor if ``x`` is a DTensor."""
    if not is_distributed(x) or is_distributed(given):
        return given
    from torch.distributed.tensor import DTensor, Replicate

    mesh = x.device_mesh  # type: ignore[attr-defined]
    return DTensor.from_local(given, mesh, [Replicate()] * mesh.ndim, run_check=False)


def agreed(x: Tensor, given: Tensor) -> Tensor:
    """The first process's ``given``, a tensor drawn at random, for all processes; as :func:`beside`, a DTensor if ``x``
    is."""
    if not is_distributed(x):
        return given
    from torch.distributed.tensor import Replicate, distribute_tensor

    mesh = x.device_mesh  # type: ignore[attr-defined]
    return distribute_tensor(given, mesh, [Replicate()] * mesh.ndim)


@cache
def _register() -> None:
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._op_schema import RuntimeSchemaInfo
    from torch.distributed.tensor.experimental import register_sharding

    remembered_by = DTensor._op_dispatcher.sharding_propagator.op_to_schema_info
    for name in DIVISIONS:
        for operator in (name, f"{name}_backward"):
            if hasattr(torch.ops.hyenarec, operator):
                overload = getattr(torch.ops.hyenarec, operator).default
                register_sharding(overload)(partial(_ways, name, overload))
                # DTensor caches its decisions, by the tensors and by the other arguments from this number on. Without
                # it, calls that differ in `needs`, or in which of two gates is None, would share one decision.
                remembered_by[overload] = RuntimeSchemaInfo(static_argnum=0, needs_pytree=True)


def _ways(name: str, overload: Any, *values: Any) -> list[Way]:
    """The placements with which ``overload``, the operator ``name`` or its backward, can run.

    In ``values``, its arguments, each tensor is replaced by DTensor's specification of it: mesh, placements, shape.
    """
    given = {argument.name: value for argument, value in zip(overload._schema.arguments, values, strict=True)}
    if {"x", "starts"} <= given.keys() and "needs" not in given:
        _refuse_positions(name, given)
    divisions = [None, *(division for division in DIVISIONS[name] if _fits(division, given))]
    ways = [_way(division, len(overload._schema.returns), given) for division in divisions]
    return _keep_history(ways, given["history"]) if "history" in given else ways


def _fits(division: str, given: dict[str, Any]) -> bool:
    """Whether the arguments can be divided in this way."""
    x: Any = given.get("x")
    if division == BATCH:  # the rows of packed x are events
        return not given.get("packed") and (x is None or x.ndim == 3 or "history" in given)
    rows = [given[name].shape[0] for name in PARAMETERS if given.get(name) is not None]
    return all(n % x.mesh.size() == 0 for n in (x.shape[-1], *(n for n in rows if n > 1)))


def _way(division: str | None, returns: int, given: dict[str, Any]) -> Way:
    """The placements of outputs and arguments for this division; with None, everything is replicated."""
    from torch.distributed.tensor import Partial, Replicate, Shard

    def place(name: str, value: Any) -> Any:
        if not hasattr(value, "placements"):
            return None  # absent, or not a tensor
        dimension = None if division is None else DIMENSIONS[division].get(name)
        shared = name in PARAMETERS and value.shape[0] == 1  # one row, shared by all channels
        return Replicate() if dimension is None or shared else Shard(dimension % value.ndim)

    def place_gradient(name: str, need: bool) -> Any:
        if division is None or not need:  # a gradient that is not needed is an empty tensor
            return Replicate()
        return Partial() if placed[name] == Replicate() else placed[name]

    placed = {name: place(name, value) for name, value in given.items()}
    if "needs" in given:
        tensors = [name for name in given if name in (*ROWS, *PARAMETERS) and not name.startswith("grad_")]
        outputs = [place_gradient(name, need) for name, need in zip(tensors, given["needs"], strict=True)]
    elif "packed" in given:  # the operator segments; for absent starts it returns an empty tensor
        outputs = [placed["starts"] or Replicate(), placed["ends"]]
    elif division == CHANNELS:
        outputs = [Shard(1 if given.get("last_only") else given["x"].ndim - 1)] * returns
    else:
        outputs = [Replicate() if division is None else Shard(0)] * returns
    return outputs, list(placed.values())


def _refuse_positions(name: str, given: dict[str, Any]) -> None:
    for argument in ("x", "pre_gate", "post_gate"):
        value = given.get(argument)
        if value is None or (argument == "post_gate" and given["last_only"]):  # then its rows are sequences
            continue
        if any(placement.is_shard(value.ndim - 2) for placement in value.placements):
            raise NotImplementedError(
                f"{name}: {argument} {tuple(value.shape)} is divided over its positions, {list(value.placements)}, but "
                f"outputs depend on earlier positions; redistribute it to Replicate(), to Shard(-1), the channels, or "
                f"to Shard(0) of a padded (B, L, D) batch"
            )


def _keep_history(ways: list[Way], history: Any) -> list[Way]:
    """The ways that do not redistribute ``history``: the operator writes to it, and writes to a copy would be lost."""
    kept = [way for way in ways if all(placement == way[1][1] for placement in history.placements)]
    if not kept:
        raise NotImplementedError(
            f"conv_step: history is written to where it lies, so it must be Replicate(), Shard(0) or Shard(2), and "
            f"the same on every dimension of the mesh; got {list(history.placements)}"
        )
    return kept
