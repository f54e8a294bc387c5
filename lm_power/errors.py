"""The errors that a user's input can cause: one base class, so that a command line has one thing to catch."""

from __future__ import annotations


class LMPowerError(Exception):
    """What a user asked for cannot be done. The message says what, why, and what to do instead, in one line."""


class UserError(LMPowerError, ValueError):
    """What a command was given cannot be worked on: arguments, folders, files of other programs."""
