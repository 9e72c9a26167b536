"""The exceptions that mean: the input is wrong, and the caller can mend it."""

from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The message is one line that says what is wrong, where, and what is allowed.

    The command line prints it after ``error:`` and exits with code 2; library users catch it or read it.
    """


def expect(value: object, kinds: type | tuple[type, ...], what: str, wanted: str) -> None:
    """Raises :class:`UserError`, which says that ``what`` must be ``wanted``, unless ``value`` is of ``kinds``."""
    wants_bool = isinstance(kinds, tuple) and bool in kinds  # bools are integers to Python
    if not isinstance(value, kinds) or (isinstance(value, bool) and not wants_bool):
        raise UserError(f"{what}: expected {wanted}, got {shortened(value)}")


def is_iterable(value: object) -> bool:
    """Whether ``value`` can be iterated over: an array or tensor without dimensions cannot, but has the method."""
    return isinstance(value, Iterable) and getattr(value, "ndim", 1) != 0


def shortened(value: object) -> str:
    """``value`` as messages show it: on one line, and not a long one."""
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a number of over 30 digits"
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."


class ScoreError(UserError, ValueError):
    """A model's scores are NaN or infinite, so nothing can be ranked by them."""


class DamagedError(UserError):
    """A file of ours that is truncated, damaged or of another version, so that it can only be replaced."""


class DivergedError(UserError):
    """A training whose loss, weights or scores have become NaN or infinite."""
