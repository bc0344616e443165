"""The server of transformers, with our loading and a guard in front."""

from __future__ import annotations

from collections.abc import Callable

from ..kv.bits import KVBits
from ..loading.load import load_model
from ..loading.processor import load_processor
from ..offload.budget import ExpertBudget
from ..transformers_private import served_by
from .choose import Server
from .guard import Guard


def run_transformers(server: Server, on_loaded: Callable[[], None]) -> None:
    """Load the model as `load_model` does, with its errors, call `on_loaded`, and serve until Ctrl-C.

    Raises:
        UsageError: the widths of keys and values, or the limit of memory, are not valid.
    """
    bits = None if server.kv_bits is None else KVBits.parse(server.kv_bits)
    budget = ExpertBudget.parse(None, server.gpu_memory)
    model = load_model(server.path, device=server.device, dtype=server.dtype, kv_bits=bits, expert_budget=budget)
    processor = load_processor(server.path)
    on_loaded()
    with served_by(lambda: model, lambda: processor, lambda app: Guard(app, server.api_key)):
        from transformers.cli.serve import Serve

        Serve(force_model=server.path, host=server.host, port=server.port)
