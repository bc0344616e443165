"""Run `hlwq` in children of one process that has imported everything, as processes of their own.

    python -m tests.support.forkserver SOCKET

Reads requests from the inherited socket SOCKET until it is closed; `forked_process.py` sends them. A child is like a
new `python -m hlwq_cli.main`: it has its own arguments, environment, folder, limits, standard streams and signal
handlers, it ends as Python ends, and any signal can kill it. Only the imports, two to six seconds, are done already.
So variables that modules read when they are imported must be those of this process; `forked_process.py` checks this.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import random
import resource
import runpy
import select
import signal
import socket
import sys
import tempfile
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

IMPORTS = {
    "quantize": ("hlwq_cli.commands.quantize", "hlwq_cli.checkpoint", "numba"),
    "bench": ("hlwq_cli.commands.bench", "hlwq_cli.measure", "hlwq_cli.runtime.model", "transformers.generation"),
    "generate": ("hlwq_cli.commands.generate", "hlwq_cli.ui.answer", "hlwq_cli.runtime.model"),
    "chat": ("hlwq_cli.commands.chat", "hlwq_cli.ui.terminal_chat", "hlwq_cli.runtime.model"),
    "demo": ("hlwq_cli.commands.demo", "hlwq_cli.ui.demo", "hlwq_cli.ui.demo.page", "hlwq_cli.runtime.model"),
    "push": ("hlwq_cli.commands.push", "hlwq_cli.hub"),
}
"""What is imported before the first child of a command is forked; `quantize` stands for all others."""


def prepare(command: str) -> None:
    """Import what a command needs, once, and freeze it, so that children share its memory."""
    for name in IMPORTS["quantize"] + IMPORTS.get(command, ()):
        importlib.import_module(name)
    _load_compiled_code()
    assert threading.active_count() == 1, "a child would lack the other threads"
    gc.collect()
    gc.freeze()


@lru_cache(maxsize=1)
def _load_compiled_code() -> None:
    """Quantize a very small model, so that children inherit what numba has compiled."""
    import torch

    from hlwq_cli.checkpoint import load_recipe, quantize
    from tests.support.builders import tiny_llama

    state = torch.get_rng_state()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        quantize(str(tiny_llama(Path(folder) / "model")), Path(folder) / "out", load_recipe(), threads=1)
    torch.set_rng_state(state)


def serve(control: socket.socket) -> None:
    """Fork a child for each request, and tell the one who asks how it ends. Returns in children only."""
    children: dict[int, tuple[int, socket.socket]] = {}
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == control.fileno():
                message, streams, _, _ = socket.recv_fds(control, 1 << 20, 4)
                if not message:
                    os._exit(0)
                request = json.loads(message)
                prepare(request["arguments"][0])
                status = socket.socket(fileno=streams.pop())
                pid = os.fork()
                if pid == 0:
                    for opened in (control, status, *(s for _, s in children.values())):
                        opened.close()
                    for pidfd in children:
                        os.close(pidfd)
                    become(request, streams)
                    return
                for stream in streams:
                    os.close(stream)
                status.sendall(str(pid).encode())
                pidfd = os.pidfd_open(pid)
                children[pidfd] = pid, status
                poll.register(pidfd, select.POLLIN)
            else:
                pid, status = children.pop(descriptor)
                poll.unregister(descriptor)
                os.close(descriptor)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with contextlib.suppress(OSError):  # the one who asked may be gone
                    status.sendall(str(code).encode())
                status.close()


def become(request: dict[str, Any], streams: list[int]) -> None:
    """Make this child what a new process would be."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = ["hlwq", *request["arguments"]]
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    tempfile.tempdir = None
    atexit.register(gc.unfreeze)  # else the end of Python frees nothing, which some libraries report as leaks
    random.seed()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    exec(request["before"], {})
    for kind, limit in request["limits"]:
        resource.setrlimit(kind, (limit, limit))


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_module("hlwq_cli.main", run_name="__main__", alter_sys=True)
