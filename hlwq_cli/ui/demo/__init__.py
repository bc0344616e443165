"""The web page of `hlwq demo`: a chat with a checkpoint, next to a summary of the checkpoint.

Its parts are imported when they are first used: the page needs gradio and torch, the checks of options need neither.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .serve import (
    Access,
    Address,
    check_gradio,
    check_port,
    choose_access,
    ended_by_signals,
    gradio_environment,
    served,
)

if TYPE_CHECKING:
    from .page import ShownModel, build_page
    from .pictures import open_picture
    from .summary import CheckpointSummary, describe

_LAZY = {
    "ShownModel": "page",
    "build_page": "page",
    "CheckpointSummary": "summary",
    "describe": "summary",
    "open_picture": "pictures",
}

__all__ = [
    "Access",
    "Address",
    "CheckpointSummary",
    "ShownModel",
    "build_page",
    "check_gradio",
    "check_port",
    "choose_access",
    "describe",
    "ended_by_signals",
    "gradio_environment",
    "open_picture",
    "served",
]


def __getattr__(name: str) -> Any:
    """Import a part of the page when it is first used."""
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
