"""Equivalence checks: a speed counts only together with the error of what was computed.

A check is ``{"against", "error", "tolerance"}``: what the timed computation was compared with on the same inputs; the
norm-wise error ``|got - want| / |want|``, the worst of the compared outputs and gradients; and the largest error that
counts as equal. A check is green where the error is at most the tolerance.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hyenarec.cloze import hide_next
from hyenarec.data.batches import Batch
from hyenarec.model import Dropout, SequenceModel
from hyenarec.packing import Packing
from hyenarec_kernels import backends
from hyenarec_kernels.nn import HyenaMixer

Check = dict[str, Any]

# By the precision of matrix products. Through two blocks, rounding alone gives errors of about 1e-6 in float32 and 1e-2
# in bfloat16, more where a recurrence is long; a wrong term, mask or gradient gives 1e-1 and more.
TOLERANCE = {"float32": 1e-3, "bfloat16": 1e-1}
CHECKED_TOKENS = 4096


def refusal(case: Mapping[str, Any]) -> str | None:
    """Why a case's speed must not be reported; None where its check is green."""
    check = case.get("check")
    if check is None:
        return "no equivalence check"
    if check["error"] <= check["tolerance"]:  # false for NaN too
        return None
    return f"equivalence check red: {check['error']:.1e} from {check['against']}, {check['tolerance']:.0e} allowed"


def compare(against: str, got: Mapping[str, Tensor], want: Mapping[str, Tensor], tolerance: float) -> Check:
    """A check of ``got`` against ``want``, tensors of the same names that were computed in another way."""
    error = max(norm_wise_error(got[name], value) for name, value in want.items())
    return {"against": against, "error": error, "tolerance": tolerance}


def norm_wise_error(got: Tensor, want: Tensor) -> float:
    """``|got - want| / |want|`` in float64; NaN where either has a NaN, 0 for two zeros."""
    difference = (got.double() - want.double()).norm()
    return float(difference / want.double().norm()) if difference != 0 else 0.0


def training_check(model: SequenceModel, batch: Batch, precision: str) -> Check:
    """Checks a model on a training batch: its hidden states, and the gradients of a random linear function of them.
    What the model computes as it is (backend, autocast, compiled or not) is compared with a float64 copy of it on the
    reference backend. Turns off dropout in ``model``, and leaves it off."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.probability = 0.0
        elif isinstance(module, HyenaMixer):
            module.gates_dropped = 0
    if model.mask is not None:
        batch = hide_next(batch)
    exact = copy.deepcopy(model).double()
    generator = torch.Generator(batch.items.device).manual_seed(0)
    weights = torch.randn(len(batch.items), model.config.dim, generator=generator, device=batch.items.device)
    got = _hidden_and_gradients(model, batch, weights, precision)
    with backends.use("reference"):
        want = _hidden_and_gradients(exact, batch, weights.double(), "float64")
    return compare("float64 reference", got, want, TOLERANCE[precision])


def _hidden_and_gradients(model: SequenceModel, batch: Batch, weights: Tensor, precision: str) -> dict[str, Tensor]:
    """The output, the gradients of the mixers' parameters and those of all other parameters, each as one vector."""
    with torch.autocast(batch.items.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        hidden: Tensor = model(batch)  # (T, D)
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad((hidden * weights).sum(), parameters, allow_unused=True)
    found: dict[str, list[Tensor]] = {"mixers' gradient": [], "others' gradient": []}
    for name, gradient in zip(names, gradients, strict=True):
        if gradient is not None:
            found["mixers' gradient" if ".mixer." in name else "others' gradient"].append(gradient.flatten())
    return {"hidden": hidden.detach()} | {name: torch.cat(parts) for name, parts in found.items() if parts}


def first_sequences(batch: Batch, tokens: int = CHECKED_TOKENS) -> Batch:
    """As many of the first sequences as have ``tokens`` events together, at least one, without their targets."""
    ends = batch.packing.cu_seqlens.cpu()
    count = max(1, int((ends[1:] <= tokens).sum()))
    events = int(ends[count])
    times = None if batch.timestamps is None else batch.timestamps[:events]
    return Batch(batch.items[:events], Packing.from_lengths(ends[: count + 1].diff()).to(batch.items.device), times)
