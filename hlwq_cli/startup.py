"""The start and the end of a process, each of which is a second or two beside what a GPU does in four."""

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
    """Import without collecting garbage meanwhile, and count what was imported as no garbage ever after.

    torch makes a million objects, none of which goes: looking through them takes a sixth of its import, and a tenth
    of a second each time later, in which no thread moves. Does nothing where torch is there already.
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
    """Start the CUDA driver beside what else is done, such as imports, where `device` may mean a GPU and there is one.

    It takes a fifth of a second, within which Python can go on. What is wrong with it, torch says when it is used.
    """
    if device != "cpu":
        threading.Thread(target=_start_driver, name="start driver").start()


def _start_driver() -> None:
    with suppress(OSError):  # there is none
        ctypes.CDLL("libcuda.so.1").cuInit(0)


def exit_fast_on_gpu(status: SystemExit) -> None:
    """End the process now where it holds a GPU, without taking apart what ends with it; returns where it holds none.

    Freeing torch's pinned memory, the GPU's context and Python's modules takes a second or more. Only for a command
    whose files are closed and threads are done, and which left nothing to be called at exit.
    """
    started = getattr(sys.modules.get("torch.cuda"), "is_initialized", bool)
    code = 0 if status.code is None else status.code
    if not started() or not isinstance(code, int):
        return
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except (AttributeError, OSError, ValueError):  # closed: Python's own end knows what to say and return
        return
    os._exit(code)
