"""A call that a backend is asked to serve, and the kinds of reason that a backend can give for refusing it."""

from __future__ import annotations

from typing import Any, NamedTuple


class Call(NamedTuple):
    """One call of an operator, or of its backward.

    Attributes:
        function: the backend's function to call: "long_conv", "long_conv_backward", ...
        operator: the operator that it belongs to: "long_conv" for both of these.
        arguments: the operator's arguments, ``x`` first. They are the same for a backward call: the gradients and
            ``needs``, which its function takes too, are left out.
    """

    function: str
    operator: str
    arguments: tuple[Any, ...]


class Slower(str):
    """A refusal for speed: the backend could serve the call, but the backend ``than`` is faster. The registry ignores
    it if ``than`` does not work here, or if the refusing backend is forced."""

    __slots__ = ("than",)
    than: str

    def __new__(cls, reason: str, than: str) -> Slower:
        made = super().__new__(cls, reason)
        made.than = than
        return made


class DeviceUnable(str):
    """A refusal because of the device. Forcing the backend there is an error: falling back to the reference would hide
    the problem."""

    __slots__ = ()
