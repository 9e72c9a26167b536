"""Which implementation serves an operator: the table of backends, their availability, and how to force one.

A backend is an object with functions named as the operators of the ``hyenarec`` namespace (``long_conv``,
``long_conv_backward``, ...) and with their arguments; it need not have all of them. The first available backend of the
table that works on a tensor's device and has the operator serves it. ``use("reference")``, or the environment variable
``HYENAREC_BACKEND``, forces one instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from hyenarec_kernels.backends import triton

ENVIRONMENT_VARIABLE = "HYENAREC_BACKEND"


@dataclass(frozen=True)
class Backend:
    """One row of the table.

    Attributes:
        devices: torch device types it serves; None for every device.
        probe: None where it works on this machine, otherwise the reason why it does not; called often, so it must be
            cheap.
        load: its implementations, called once an operator is needed.
    """

    devices: tuple[str, ...] | None
    probe: Callable[[], str | None]
    load: Callable[[], Any]

    def serves(self, device: str) -> bool:
        return self.devices is None or device in self.devices


# Order of preference; the reference serves whatever nothing above it does.
BACKENDS: dict[str, Backend] = {
    "cpu": Backend(
        ("cpu",),
        lambda: import_module("hyenarec_kernels.backends.cpu").probe(),
        lambda: import_module("hyenarec_kernels.backends.cpu"),
    ),
    "cuda": Backend(
        ("cuda",),
        lambda: import_module("hyenarec_kernels.backends.cuda").probe(),
        lambda: import_module("hyenarec_kernels.backends.cuda"),
    ),
    "triton": Backend(
        triton.DEVICES, triton.probe, lambda: import_module("hyenarec_kernels.backends.triton.operators")
    ),
    "reference": Backend(None, lambda: None, lambda: import_module("hyenarec_kernels.backends.reference")),
}

# A plain global, not a context variable: autograd runs CUDA backwards in threads that do not inherit the caller's
# context.
_forced: str | None = None


def available(device: str) -> list[str]:
    """The backends that work on this machine for a torch device type ("cpu", "cuda"), in order of preference."""
    return list(_available(device))


def _available(device: str) -> Iterator[str]:
    """One by one, so that a call probes no backend behind the one that serves it."""
    return (name for name, backend in BACKENDS.items() if backend.serves(device) and backend.probe() is None)


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


def implementation(operator: str, device: str) -> Callable[..., Any]:
    """The function that serves ``operator`` on a torch device type now."""
    name = forced()
    if name is not None:
        _check_usable(name, "backends.use" if _forced else ENVIRONMENT_VARIABLE)
        if not BACKENDS[name].serves(device):
            raise NotImplementedError(f"{operator}: the forced backend {name!r} does not serve device {device!r}")
    for candidate in _available(device) if name is None else [name]:
        function: Callable[..., Any] | None = getattr(BACKENDS[candidate].load(), operator, None)
        if function is not None:
            return function
    tried = available(device) if name is None else [name]
    raise NotImplementedError(f"{operator}: not implemented for device {device!r} by backend {', '.join(tried)}")


def _check_usable(name: str, origin: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"{origin}: no backend is called {name!r}; there are {', '.join(BACKENDS)}")
    reason = BACKENDS[name].probe()
    if reason is not None:
        raise NotImplementedError(f"{origin}: backend {name!r} is not available here: {reason}")
