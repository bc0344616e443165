"""What transformers raises for inputs and settings that a model does not take, as an error of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ...errors import UnsupportedError

_REFUSALS = (TypeError, ValueError, RuntimeError, AttributeError, ImportError, LookupError, ArithmeticError)
_NOT_REFUSALS = ("CUDA", "cuda", "out of memory", "allocate memory")
"""A RuntimeError with one of these words is a failure of the device or a lack of memory."""


@contextmanager
def as_unsupported(what: str, hint: str) -> Iterator[None]:
    """Raise UnsupportedError for what transformers refuses: `what`, the words of transformers, and `hint`."""
    try:
        yield
    except _REFUSALS as error:
        said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        if isinstance(error, RuntimeError) and any(word in said for word in _NOT_REFUSALS):
            raise
        raise UnsupportedError(f"{what}: {said}.", hint) from error
