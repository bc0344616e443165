"""Modules that hold codes: linear layers, embeddings, experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .conv1d import HLWQConv1D
    from .embedding import HLWQEmbedding, HLWQTiedLinear, code_embedding
    from .experts import HLWQExperts, code_experts
    from .format import Execution, QuantFormat
    from .linear import HLWQLinear
    from .matrix import CodedMatrix
    from .names import PARAMETERS, PARTS, codes_name
    from .parameters import HLWQModule, ParameterCodes, code_parameters

__all__ = [
    "PARAMETERS",
    "PARTS",
    "CodedMatrix",
    "Execution",
    "HLWQConv1D",
    "HLWQEmbedding",
    "HLWQExperts",
    "HLWQLinear",
    "HLWQModule",
    "HLWQTiedLinear",
    "ParameterCodes",
    "QuantFormat",
    "code_embedding",
    "code_experts",
    "code_parameters",
    "codes_name",
]
__getattr__ = lazy_names(
    __name__,
    {
        "conv1d": ("HLWQConv1D",),
        "embedding": (
            "HLWQEmbedding",
            "HLWQTiedLinear",
            "code_embedding",
        ),
        "experts": (
            "HLWQExperts",
            "code_experts",
        ),
        "format": (
            "Execution",
            "QuantFormat",
        ),
        "linear": ("HLWQLinear",),
        "matrix": ("CodedMatrix",),
        "names": (
            "PARAMETERS",
            "PARTS",
            "codes_name",
        ),
        "parameters": (
            "HLWQModule",
            "ParameterCodes",
            "code_parameters",
        ),
    },
)
