"""The exceptions that mean: the input is wrong, and the caller can mend it."""


class UserError(Exception):
    """Bad input. The message is one line that says what is wrong, where, and what is allowed.

    The command line prints it after ``error:`` and exits with code 2; library users catch it or read it.
    """


class ScoreError(UserError, ValueError):
    """A model's scores are NaN or infinite, so nothing can be ranked by them."""


class DamagedError(UserError):
    """A file of ours that is truncated, damaged or of another version, so that nothing but replacing it helps."""
