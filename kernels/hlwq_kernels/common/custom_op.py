"""Custom ops that cost nothing where nothing is traced.

The first call of a `torch.library` custom op imports torch's compiler, which takes seconds, and every call some tens of
microseconds. torch.compile and torch.export need the op; the rest calls the function behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def traceable(op: Callable[..., R], plain: Callable[P, R]) -> Callable[P, R]:
    """Return a function that calls `op` under torch.compile and torch.export, else `plain`, the function behind it."""

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return op(*args, **kwargs) if torch.compiler.is_compiling() else plain(*args, **kwargs)

    return call
