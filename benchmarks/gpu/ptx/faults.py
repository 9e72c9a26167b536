"""What the emulator's checks find."""

from __future__ import annotations


class Fault(Exception):
    """A wrong access, a race, or an instruction that the emulator does not know; with the place where it was found."""
