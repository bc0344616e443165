"""A plugin for vLLM: `vllm serve out` and `LLM("out")` run coded checkpoints, with no option of their own.

vLLM calls `register` in each of its processes, through the entry point `vllm.general_plugins`. The plugin needs the
kernels and a reader of headers, and nothing of `hlwq_cli.runtime`.
"""

from __future__ import annotations

__all__ = ["register"]


def register() -> None:
    """Register the quantization method `hlwq` with vLLM; calls after the first change nothing.

    Raises:
        UnsupportedError: this vLLM is older than those that the plugin supports.
    """
    from .registration import register_with_vllm

    register_with_vllm()
