"""Equivalence: a speed counts only beside the error of what it computes.

A check is ``{"against", "error", "tolerance"}``: what the timed computation was compared with on the same inputs, the
norm-wise error ``|got - want| / |want|``, the worst of the outputs and gradients that were compared, and the largest
error that counts as equal. It is green where the error is at most the tolerance.
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

# By what matrix products are computed in. Rounding alone gives about 1e-6 and 1e-2 through two blocks, more where a
# recurrence is long; a wrong term, mask or gradient gives 1e-1 and more.
TOLERANCE = {"float32": 1e-3, "bfloat16": 1e-1}
CHECKED_TOKENS = 4096


def refusal(case: Mapping[str, Any]) -> str | None:
    """Why the speed of a case must not be reported; None where its check is green."""
    check = case.get("check")
    if check is None:
        return "no equivalence check"
    if check["error"] <= check["tolerance"]:  # false for NaN too
        return None
    return f"equivalence check red: {check['error']:.1e} from {check['against']}, {check['tolerance']:.0e} allowed"


def compare(against: str, got: Mapping[str, Tensor], want: Mapping[str, Tensor], tolerance: float) -> Check:
    """The check of tensors against those of the same names, computed otherwise."""
    error = max(norm_wise_error(got[name], value) for name, value in want.items())
    return {"against": against, "error": error, "tolerance": tolerance}


def norm_wise_error(got: Tensor, want: Tensor) -> float:
    """``|got - want| / |want|`` in float64; NaN where either is, 0 for two zeros."""
    difference = (got.double() - want.double()).norm()
    return float(difference / want.double().norm()) if difference != 0 else 0.0


def training_check(model: SequenceModel, batch: Batch, precision: str) -> Check:
    """The hidden states of a training batch, and the gradients of a random functional of them, as the model computes
    them (backend, autocast, compiled or not) against a float64 copy of it on the reference backend."""
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
    """The output and the gradients of the mixers' parameters and of the others, each as one vector."""
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
    """As many of the first sequences as have ``tokens`` events together, one at least; targets are left behind."""
    ends = batch.packing.cu_seqlens.cpu()
    count = max(1, int((ends[1:] <= tokens).sum()))
    events = int(ends[count])
    times = None if batch.timestamps is None else batch.timestamps[:events]
    return Batch(batch.items[:events], Packing.from_lengths(ends[: count + 1].diff()).to(batch.items.device), times)
