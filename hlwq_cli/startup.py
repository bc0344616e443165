"""Faster start and end of a process: each takes a second or two, where a GPU may work for only four."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def imports_without_gc() -> Iterator[None]:
    """Switch off garbage collection for imports inside this context, and freeze what they create.

    torch creates a million objects that are never freed. Collections take a sixth of its import time. Later ones take
    a tenth of a second each, while all threads wait. Does nothing if torch is imported already.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def start_driver(device: str) -> None:
    """Start the CUDA driver in a thread, unless `device` is `cpu`, while for example imports run.

    This takes a fifth of a second and does not block Python. Errors are ignored: torch reports them when it uses the
    driver.
    """
    if device != "cpu":
        threading.Thread(target=_start_driver, name="start driver").start()


def _start_driver() -> None:
    with suppress(OSError):  # there is no driver
        ctypes.CDLL("libcuda.so.1").cuInit(0)


def exit_fast_on_gpu(status: SystemExit) -> None:
    """End the process without cleanup if it has used a GPU; otherwise return.

    Freeing torch's pinned memory, the CUDA context and Python's modules takes a second or more. Only for a command
    whose files are closed, whose threads have ended, and which has registered no exit handlers.
    """
    uses_gpu = getattr(sys.modules.get("torch.cuda"), "is_initialized", bool)
    code = 0 if status.code is None else status.code
    if not uses_gpu() or not isinstance(code, int):
        return
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except (AttributeError, OSError, ValueError):  # closed: leave the message and exit code to Python's usual exit
        return
    os._exit(code)
