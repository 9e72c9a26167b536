"""What the checks of the machine find."""

from __future__ import annotations


class Fault(Exception):
    """A wrong access, a race, or an instruction that the machine does not know; with the place where it was found."""
