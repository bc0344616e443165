"""Everything that is shown to people: results, progress, errors, and the options that commands have in common.

The displays are imported when they are first used, so that `hlwq --help` stays fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import INTERRUPTED, handle_errors
from .options import (
    DtypeOption,
    ExecutionOption,
    FormatOption,
    GpuMemoryOption,
    JsonOption,
    KvBitsOption,
    MaxNewTokensOption,
    ModelDeviceOption,
    QuietOption,
    SeedOption,
    SystemOption,
    TemperatureOption,
    as_execution,
)
from .sink import Format, Sink

if TYPE_CHECKING:
    from .answer import checked_prompt, open_image, open_model, show_answer
    from .bench_tables import show_bench
    from .demo_address import show_demo, show_login
    from .progress import hide_library_bars, progress_display, quiet_log
    from .show import show_diff, show_inspected, show_plan, show_pushed, show_quantized, show_verified
    from .terminal_chat import TerminalChat

_MODULES = {
    "answer": ("checked_prompt", "open_image", "open_model", "show_answer"),
    "terminal_chat": ("TerminalChat",),
    "progress": ("hide_library_bars", "progress_display", "quiet_log"),
    "show": ("show_diff", "show_inspected", "show_plan", "show_pushed", "show_quantized", "show_verified"),
    "bench_tables": ("show_bench",),
    "demo_address": ("show_demo", "show_login"),
}
_LAZY = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "INTERRUPTED",
    "DtypeOption",
    "ExecutionOption",
    "Format",
    "FormatOption",
    "GpuMemoryOption",
    "JsonOption",
    "KvBitsOption",
    "MaxNewTokensOption",
    "ModelDeviceOption",
    "QuietOption",
    "SeedOption",
    "Sink",
    "SystemOption",
    "TemperatureOption",
    "TerminalChat",
    "as_execution",
    "checked_prompt",
    "handle_errors",
    "hide_library_bars",
    "open_image",
    "open_model",
    "progress_display",
    "quiet_log",
    "show_answer",
    "show_bench",
    "show_demo",
    "show_diff",
    "show_inspected",
    "show_login",
    "show_plan",
    "show_pushed",
    "show_quantized",
    "show_verified",
]


def __getattr__(name: str) -> Any:
    """Import a display when it is first used."""
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
