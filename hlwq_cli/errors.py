"""All errors that hlwq raises on purpose.

    HlwqError                  1  what went wrong, and what to do
    |-- UsageError             2  invalid option or argument
    |-- NotFoundError          3  no such folder, repository, revision or file
    |-- NotAllowedError        4  gated, private, or not writable
    |-- ConflictError          5  the output exists and was made with different settings
    |-- GateMissedError        6  a limit that the caller set was missed, or nothing would be coded
    |-- CorruptError           1  files that are invalid or inconsistent
    |-- UnsupportedError       1  a checkpoint that hlwq cannot code or read
    |-- NonFiniteError         1  a weight that is infinite or NaN
    `-- OutOfSpaceError        1  the disk is full, or the output would fill it

The number is the exit code of the command line.
"""

from __future__ import annotations


class HlwqError(Exception):
    """Base class of all errors of hlwq.

    Attributes:
        what: one sentence that says what is wrong.
        hint: one sentence that says what to do; may be empty.
    """

    exit_code = 1

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what if not hint else f"{what} {hint}")
        self.what = what
        self.hint = hint


class UsageError(HlwqError):
    """Invalid option or argument."""

    exit_code = 2


class NotFoundError(HlwqError):
    """There is no such folder, repository, revision or file."""

    exit_code = 3


class NotAllowedError(HlwqError):
    """Gated, private, or not writable."""

    exit_code = 4


class ConflictError(HlwqError):
    """The output exists and was made with different settings."""

    exit_code = 5


class GateMissedError(HlwqError):
    """A limit that the caller set was missed, or nothing would be coded."""

    exit_code = 6


class CorruptError(HlwqError):
    """Files that are invalid or inconsistent."""


class UnsupportedError(HlwqError):
    """A checkpoint that hlwq cannot code or read."""


class NonFiniteError(HlwqError):
    """A weight that is infinite or NaN."""


class OutOfSpaceError(HlwqError):
    """The disk is full, or the output would fill it."""
