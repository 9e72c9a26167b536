"""What the registry asks a backend about: a call, and the kinds of reason for which a backend does not take it."""

from __future__ import annotations

from typing import Any, NamedTuple


class Call(NamedTuple):
    """One call of an operator, or of its backward.

    Attributes:
        function: the backend's function to be called: "long_conv", "long_conv_backward", ...
        operator: the operator: "long_conv" for both of these.
        arguments: those of the operator, ``x`` first. A backward call has them too, without the gradients and ``needs``
            that it has besides.
    """

    function: str
    operator: str
    arguments: tuple[Any, ...]


class Slower(str):
    """A reason of speed: the backend could serve the call, but the backend ``than`` is faster. It does not count where
    ``than`` does not work, or where the backend that gives it is forced."""

    __slots__ = ("than",)
    than: str

    def __new__(cls, reason: str, than: str) -> Slower:
        made = super().__new__(cls, reason)
        made.than = than
        return made


class DeviceUnable(str):
    """A reason that lies in the device: a backend forced on it is an error, where the reference would hide that."""

    __slots__ = ()
