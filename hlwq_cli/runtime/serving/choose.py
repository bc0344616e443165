"""What is served and how, and which library can do it."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, cast

from ...errors import HlwqError, UnsupportedError, UsageError

Engine = Literal["vllm", "transformers"]
_NEEDS = ("fastapi", "openai", "pydantic", "uvicorn")  # the extra `serving` of transformers


@dataclass(frozen=True)
class Server:
    """Where and how one checkpoint is served.

    Attributes:
        path: a folder, a Hub id, or `sample`.
        host: the address to listen at.
        port: the port to listen at.
        api_key: what requests must bring; None lets all in.
        device: see `load_model`.
        dtype: see `load_model`.
        kv_bits: widths of the codes of cached keys and values, such as "4,3"; None keeps them exact.
        gpu_memory: limit of GPU memory, such as "8.6GB"; experts that do not fit stay in host memory.
    """

    path: str
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    kv_bits: str | None = None
    gpu_memory: str | None = None

    @property
    def url(self) -> str:
        """The address of the API."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}/v1"

    @property
    def is_local(self) -> bool:
        """Whether only programs on this machine can reach the server."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a name of another machine
            return False

    def check(self) -> None:
        """Check the address and the key.

        Raises:
            UsageError: the key is empty or has characters that no header can hold; the host is not an address here.
            HlwqError: the port is in use.
        """
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            raise UsageError("The API key is empty or has characters that no request can bring.", "Use ASCII letters.")
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host, self.port))
            except PermissionError as error:
                raise HlwqError(f"You are not allowed to use port {self.port}.", "Use one from 1024 up.") from error
            except socket.gaierror as error:
                raise UsageError(f"{self.host} is not an address of this machine.", "Use 127.0.0.1.") from error
            except OSError as error:
                raise HlwqError(
                    f"Port {self.port} of {self.host} cannot be used: {error.strerror}.",
                    "Use another one.",
                ) from error


def choose_engine(wanted: str, server: Server) -> Engine:
    """Return the library that serves: vLLM if it is installed, else transformers.

    Args:
        wanted: `auto`, `vllm` or `transformers`.
        server: what the library must be able to do.

    Raises:
        UsageError: there is no such engine; it has no way to do what is asked for.
        UnsupportedError: it is not installed.
    """
    if wanted not in ("auto", "vllm", "transformers"):
        raise UsageError(f"--engine must be auto, vllm or transformers, not {wanted!r}.", "Use one of these.")
    has_vllm = find_spec("vllm") is not None
    engine = cast("Engine", ("vllm" if has_vllm else "transformers") if wanted == "auto" else wanted)
    if engine == "vllm":
        if not has_vllm:
            raise UnsupportedError("vLLM is not installed.", "Run pip install vllm, or use --engine transformers.")
        _check_vllm(server)
    elif missing := [name for name in _NEEDS if find_spec(name) is None]:
        raise UnsupportedError(
            f"The server of transformers needs {', '.join(missing)}.", "Run pip install 'hlwq[serve]'."
        )
    return engine


def _check_vllm(server: Server) -> None:
    """Refuse by name what vLLM cannot do with coded checkpoints."""
    if server.kv_bits is not None:
        raise UsageError(
            "vLLM has no codes for keys and values, so it cannot take --kv-bits.", "Use --engine transformers."
        )
    if server.gpu_memory is not None:
        raise UsageError(
            "vLLM takes a number of experts on the GPU, not --gpu-memory.",
            "Run vllm serve with expert_cache_slots, see docs/serving.md, or use --engine transformers.",
        )
    if server.device != "auto":
        raise UsageError("vLLM chooses its device itself, so it cannot take --device.", "Use --engine transformers.")
