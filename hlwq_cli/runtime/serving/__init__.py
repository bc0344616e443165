"""OpenAI-compatible servers of other libraries, started for one checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .choose import Server, choose_engine
    from .transformers_server import run_transformers
    from .vllm_server import run_vllm

__all__ = ["Server", "choose_engine", "run_transformers", "run_vllm"]
__getattr__ = lazy_names(
    __name__,
    {
        "choose": ("Server", "choose_engine"),
        "transformers_server": ("run_transformers",),
        "vllm_server": ("run_vllm",),
    },
)
