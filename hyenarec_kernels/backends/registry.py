"""Which implementation serves an operator: the table of backends, their availability, and how to force one.

A backend is an object, usually a module, with functions named as the operators of the ``hyenarec`` namespace
(``long_conv``, ``long_conv_backward``, ...) and with their arguments; it need not have all of them. Besides it may have

    accepts(call) -> None, or in one plain line the reason why it does not take this call    (all calls without it)
    algorithm(call) -> how it computes a call that it accepts, in a word or two, for the log
    mixer, mixer_backward: a mixer's whole pass in one call, instead of one for each operator (`whole`)

This module alone chooses: the first backend of the table that works on the tensors' device, has the operator and
accepts the call serves it. No backend hands a call on to another. ``use("reference")``, or the environment variable
``HYENAREC_BACKEND``, forces one backend instead, whatever is faster. What a forced backend cannot compute, of an
operator that it has, the reference serves.

Transforms of ``torch.func`` (``grad``, ``jvp``, ``vmap``) and forward mode call no kernel: there an operator is the
reference's PyTorch operations themselves, whatever is forced (`under_transforms`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from hyenarec_kernels.backends import log, triton
from hyenarec_kernels.backends.calls import Call, DeviceUnable, Slower

ENVIRONMENT_VARIABLE = "HYENAREC_BACKEND"


@dataclass(frozen=True)
class Backend:
    """One row of the table.

    Attributes:
        devices: torch device types it serves; None for every device.
        probe: None where it works on this machine, otherwise the reason why it does not; called often, so it must be
            cheap.
        load: its implementations; called often.
    """

    devices: tuple[str, ...] | None
    probe: Callable[[], str | None]
    load: Callable[[], Any]

    def serves(self, device: str) -> bool:
        return self.devices is None or device in self.devices


@cache
def _module(name: str) -> Any:
    return import_module(f"hyenarec_kernels.backends.{name}")


# Order of preference; the reference serves whatever nothing above it does.
BACKENDS: dict[str, Backend] = {
    "cpu": Backend(("cpu",), lambda: _module("cpu").probe(), lambda: _module("cpu")),
    "cuda": Backend(("cuda",), lambda: _module("cuda").probe(), lambda: _module("cuda")),
    "triton": Backend(triton.DEVICES, triton.probe, lambda: _module("triton.operators")),
    "reference": Backend(None, lambda: None, lambda: _module("reference")),
}

# A plain global, not a context variable: autograd runs CUDA backwards in threads that do not inherit the caller's
# context.
_forced: str | None = None


def available(device: str) -> list[str]:
    """The backends that work on this machine for a torch device type ("cpu", "cuda"), in order of preference."""
    return [name for name in BACKENDS if _works(name, device)]


@contextmanager
def use(name: str) -> Iterator[None]:
    """Forces one backend for every operator called inside, backward passes included.

    Raises:
        ValueError: there is no backend of that name.
        NotImplementedError: it does not work on this machine; the message gives the reason.
    """
    global _forced
    _check_usable(name, "backends.use")
    previous, _forced = _forced, name
    try:
        yield
    finally:
        _forced = previous


def forced() -> str | None:
    """The name of the backend that ``use`` or the environment variable forces, if any."""
    return _forced or os.environ.get(ENVIRONMENT_VARIABLE) or None


def lacks(operator: str) -> bool:
    """Whether the forced backend does not have this operator at all, so that a call of it would be refused."""
    name = forced()
    return name in BACKENDS and BACKENDS[name].probe() is None and not hasattr(BACKENDS[name].load(), operator)


def implementation(call: Call) -> Callable[..., Any]:
    """The function that serves a call now.

    Raises:
        ValueError: an environment variable has an unknown value.
        NotImplementedError: the forced backend does not have the operator, or not on this device.
    """
    device, name = call.arguments[0].device.type, forced()
    chosen, function = _first(call, device) if name is None else _served_by_force(name, call, device)
    if log.enabled():
        log.report(call, chosen, getattr(BACKENDS[chosen].load(), "algorithm", None), _others(call, device, chosen))
    return function


def whole(call: Call) -> Callable[..., Any] | None:
    """The function that serves a call of several operators as one, of the first backend that has it and takes the
    call; None where there is none, and each operator is to be called by itself."""
    name, device = forced(), call.arguments[0].device.type
    for candidate in BACKENDS if name is None else BACKENDS.keys() & {name}:
        if not _works(candidate, device):
            continue
        backend = BACKENDS[candidate].load()
        function: Callable[..., Any] | None = getattr(backend, call.function, None)
        if function is not None and _reason(backend, call) is None:
            if log.enabled():
                log.report_whole(call, candidate)
            return function
    return None


def under_transforms(call: Call) -> Callable[..., Any]:
    """The function that serves a call inside a transform of ``torch.func`` or in forward mode: the reference's.

    There is no way to run a kernel: its derivatives are known to autograd's backward mode alone.
    """
    if log.enabled():
        reason = "transforms of torch.func and forward mode differentiate PyTorch's own operations"
        others = [
            (name, reason)
            for name, row in BACKENDS.items()
            if name != "reference" and row.serves(call.arguments[0].device.type)
        ]
        log.report(call, "reference", None, others)
    function: Callable[..., Any] = getattr(BACKENDS["reference"].load(), call.function)
    return function


def _first(call: Call, device: str) -> tuple[str, Callable[..., Any]]:
    for name in BACKENDS:
        if not _works(name, device):
            continue
        backend = BACKENDS[name].load()
        function = getattr(backend, call.function, None)
        if function is None:
            continue
        reason = _reason(backend, call)
        if reason is None or (isinstance(reason, Slower) and not _works(reason.than, device)):
            return name, function
    raise NotImplementedError(
        f"{call.function}: not implemented for device {device!r} by backend {', '.join(available(device))}"
    )


def _served_by_force(name: str, call: Call, device: str) -> tuple[str, Callable[..., Any]]:
    _check_usable(name, "backends.use" if _forced else ENVIRONMENT_VARIABLE)
    if not BACKENDS[name].serves(device):
        raise NotImplementedError(f"{call.function}: the forced backend {name!r} does not serve device {device!r}")
    backend = BACKENDS[name].load()
    function = getattr(backend, call.function, None)
    if function is None:
        raise NotImplementedError(f"{call.function}: not implemented for device {device!r} by backend {name}")
    reason = _reason(backend, call)
    if reason is None or isinstance(reason, Slower):
        return name, function
    if isinstance(reason, DeviceUnable):
        where = call.arguments[0].device
        raise NotImplementedError(f"{call.function}: the forced backend {name!r} does not run on {where}: {reason}")
    return "reference", getattr(BACKENDS["reference"].load(), call.function)


def _works(name: str, device: str) -> bool:
    backend = BACKENDS[name]
    return backend.serves(device) and backend.probe() is None


def _reason(backend: Any, call: Call) -> str | None:
    accepts = getattr(backend, "accepts", None)
    reason: str | None = None if accepts is None else accepts(call)
    return reason


def _others(call: Call, device: str, chosen: str) -> Iterator[tuple[str, str]]:
    """For the log: each backend that comes before the chosen one, and why it does not serve the call."""
    for name, row in BACKENDS.items():
        if name == chosen:
            return
        if not row.serves(device):
            yield name, f"it does not serve device {device!r}"
        elif (unavailable := row.probe()) is not None:
            yield name, unavailable
        elif not hasattr(row.load(), call.function):
            yield name, "it does not have this operator"
        else:
            yield name, _reason(row.load(), call) or f"{forced()} is forced"


def _check_usable(name: str, origin: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"{origin}: no backend is called {name!r}; there are {', '.join(BACKENDS)}")
    reason = BACKENDS[name].probe()
    if reason is not None:
        raise NotImplementedError(f"{origin}: backend {name!r} is not available here: {reason}")
