"""Generation: one-token steps on static buffers, captured into CUDA graphs where there is CUDA."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .decoder import Decoder
    from .generation import Decoding, Generation
    from .transformers_errors import as_unsupported

__all__ = [
    "Decoder",
    "Decoding",
    "Generation",
    "as_unsupported",
]
__getattr__ = lazy_names(
    __name__,
    {
        "decoder": ("Decoder",),
        "generation": (
            "Decoding",
            "Generation",
        ),
        "transformers_errors": ("as_unsupported",),
    },
)
