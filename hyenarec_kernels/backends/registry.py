"""Chooses the backend that serves an operator: the table of backends, their availability, and how to force one.

A backend is an object, usually a module, with one function per operator of the ``hyenarec`` namespace, of the same name
and with the same arguments (``long_conv``, ``long_conv_backward``, ...). It may lack some operators. It may also have

    accepts(call) -> None, or a plain one-line reason why it does not take this call    (without it: takes all calls)
    algorithm(call) -> how it computes a call that it accepts, in a word or two, for the log
    mixer, mixer_backward: a mixer's whole pass in one call, instead of one call per operator (`whole`)

Only this module chooses. The first backend of the table that works on the tensors' device, has the operator and accepts
the call serves it. No backend hands a call on to another. ``use("reference")``, or the environment variable
``HYENAREC_BACKEND``, forces one backend instead, even if another is faster. If that backend has the operator but
cannot compute the call, the reference serves it.

Transforms of ``torch.func`` (``grad``, ``jvp``, ``vmap``) and forward-mode differentiation call no kernel: there the
reference's PyTorch operations compute every operator, even if another backend is forced (`under_transforms`).
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
        probe: returns None if it works on this machine, otherwise the reason why not. Called often, so it must be
            cheap.
        load: returns its implementations; called often too.
    """

    devices: tuple[str, ...] | None
    probe: Callable[[], str | None]
    load: Callable[[], Any]

    def serves(self, device: str) -> bool:
        return self.devices is None or device in self.devices


@cache
def _module(name: str) -> Any:
    return import_module(f"hyenarec_kernels.backends.{name}")


# In order of preference. The reference is last: it serves whatever the others do not.
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
    """Forces one backend for every operator called inside the ``with`` block, backward passes included.

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
    """The name of the backend that ``use`` or the environment variable forces, or None."""
    return _forced or os.environ.get(ENVIRONMENT_VARIABLE) or None


def lacks(operator: str) -> bool:
    """Whether the forced backend does not have this operator at all, so that calling the operator would raise an
    error."""
    name = forced()
    return name in BACKENDS and BACKENDS[name].probe() is None and not hasattr(BACKENDS[name].load(), operator)


def implementation(call: Call) -> Callable[..., Any]:
    """The function of the chosen backend that serves a call.

    Raises:
        ValueError: an environment variable has an unknown value.
        NotImplementedError: the forced backend does not work here, lacks the operator or does not run on this device;
            or no backend serves the call.
    """
    device, name = call.arguments[0].device.type, forced()
    chosen, function = _first(call, device) if name is None else _served_by_force(name, call, device)
    if log.enabled():
        log.report(call, chosen, getattr(BACKENDS[chosen].load(), "algorithm", None), _others(call, device, chosen))
    return function


def whole(call: Call) -> Callable[..., Any] | None:
    """The function that serves a call of several operators at once, from the first backend that has one and accepts the
    call. None if there is none; then each operator must be called by itself."""
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

    Kernels cannot be used there, because only autograd's backward mode knows their derivatives.
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
