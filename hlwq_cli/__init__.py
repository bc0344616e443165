"""hlwq: language models quantized to packed Hadamard-Lloyd codes.

>>> from hlwq_cli import quantize, inspect, export, load_recipe
>>> quantize("google/gemma-4-26B-A4B-it", "out", load_recipe(bits=5))  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._version import __version__
from .runtime.loading.import_hook import install as _install_plugin

if TYPE_CHECKING:
    from .checkpoint import export, inspect, load_recipe, quantize, verify
    from .runtime import HLWQModel, PolarQuantModel

__all__ = ["HLWQModel", "PolarQuantModel", "__version__", "export", "inspect", "load_recipe", "quantize", "verify"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `hlwq --help` does not wait for torch."""
    if name in ("HLWQModel", "PolarQuantModel"):
        from . import runtime

        return getattr(runtime, name)
    if name in __all__:
        from . import checkpoint

        return getattr(checkpoint, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_install_plugin()
