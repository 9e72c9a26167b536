"""Recurrences that several mixers share, each with a parallel form: one file a recurrence."""
