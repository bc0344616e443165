"""hlwq: language models quantized to packed Hadamard-Lloyd codes.

>>> from hlwq_cli import HLWQModel, quantize
>>> quantize("google/gemma-4-26B-A4B-it", "out", bits=5)  # doctest: +SKIP
>>> HLWQModel.from_pretrained("out").generate("What is a Hadamard matrix?")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._version import __version__
from .runtime.loading.import_hook import install as _install_plugin

if TYPE_CHECKING:
    from .api import quantize
    from .checkpoint import export, inspect, load_recipe, open_coded, verify
    from .runtime import HLWQModel, PolarQuantModel

__all__ = [
    "HLWQModel",
    "PolarQuantModel",
    "__version__",
    "export",
    "inspect",
    "load_recipe",
    "open_coded",
    "quantize",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `hlwq --help` does not wait for torch."""
    if name in ("HLWQModel", "PolarQuantModel"):
        from . import runtime

        return getattr(runtime, name)
    if name == "quantize":
        from .api import quantize

        return quantize
    if name in __all__:
        from . import checkpoint

        return getattr(checkpoint, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_install_plugin()
