"""vLLM's own server, which takes the place of this process."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from ...samples import resolve_model
from .choose import Server


def run_vllm(server: Server) -> NoReturn:
    """Become vLLM's server. It gets the API key in its environment, where no list of processes shows it."""
    environment = {**os.environ}
    environment.pop("VLLM_API_KEY", None)
    if server.api_key is not None:
        environment["VLLM_API_KEY"] = server.api_key
    sys.stdout.flush()
    os.execve(sys.executable, vllm_command(server), environment)


def vllm_command(server: Server) -> list[str]:
    """Return the command that starts vLLM's server."""
    where = ["--host", server.host, "--port", str(server.port)]
    what = ["--model", resolve_model(server.path), "--served-model-name", server.path, "--dtype", server.dtype]
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *what, *where]
