"""Every error hlwq raises on purpose.

    HlwqError                  1  what went wrong, and what to do about it
    |-- UsageError             2  an option or argument that cannot be meant
    |-- NotFoundError          3  no such folder, repository, revision or file
    |-- NotAllowedError        4  gated, private, or not writable
    |-- ConflictError          5  the output exists and was made otherwise
    |-- GateMissedError        6  a limit the caller set was not kept
    |-- CorruptError           1  files that contradict themselves or each other
    |-- UnsupportedError       1  a checkpoint of a kind that cannot be coded or read
    |-- NonFiniteError         1  a weight that no code can stand for
    `-- OutOfSpaceError        1  the disk is full, or would be

The number is the exit code of the command line.
"""

from __future__ import annotations


class HlwqError(Exception):
    """Base of all errors here.

    Attributes:
        what: one sentence, what is wrong.
        hint: one sentence, what to do; may be empty.
    """

    exit_code = 1

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what if not hint else f"{what} {hint}")
        self.what = what
        self.hint = hint


class UsageError(HlwqError):
    """An option or argument that cannot be meant."""

    exit_code = 2


class NotFoundError(HlwqError):
    """No such folder, repository, revision or file."""

    exit_code = 3


class NotAllowedError(HlwqError):
    """Gated, private, or not writable."""

    exit_code = 4


class ConflictError(HlwqError):
    """The output exists and was made otherwise."""

    exit_code = 5


class GateMissedError(HlwqError):
    """A limit the caller set was not kept."""

    exit_code = 6


class CorruptError(HlwqError):
    """Files that contradict themselves or each other."""


class UnsupportedError(HlwqError):
    """A checkpoint of a kind that cannot be coded or read."""


class NonFiniteError(HlwqError):
    """A weight that no code can stand for."""


class OutOfSpaceError(HlwqError):
    """The disk is full, or would be."""
