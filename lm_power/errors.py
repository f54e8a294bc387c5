"""The errors that a user's input can cause. They share one base class, which a command line can catch."""

from __future__ import annotations


class LMPowerError(Exception):
    """What a user asked for cannot be done. The message says what, why, and what to do instead, in one line."""


class DataError(LMPowerError, ValueError):
    """A data set or a user's file does not have the form that it must have."""


class MissingPackageError(LMPowerError, ImportError):
    """A Python package that is needed for this is not installed."""


class UnavailableError(LMPowerError, RuntimeError):
    """Something cannot be obtained on this machine, such as a data set of the hub without a network."""


class UserError(LMPowerError, ValueError):
    """A command's input is not valid: arguments, folders, files of other programs."""


def one_line(error: BaseException, longest: int | None = None) -> str:
    """The message of an error on one line, at most `longest` characters of it; empty if it has none."""
    return " ".join(str(error).split())[:longest]
