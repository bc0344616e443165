"""What coded modules share: how a coded parameter is stored, and how it is executed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Self

import torch
from torch import nn

from hlwq_kernels import decode_rows
from hlwq_kernels.codes import SCALE_FORMATS, ScaleKind, layout, padded_columns

from .names import PARTS

Execution = Literal["auto", "coded", "dense"]


@dataclass(frozen=True)
class QuantFormat:
    """How the coded parameters of a model are stored and executed.

    Attributes:
        block_size: weights that share a scale.
        scale: kind of block scale.
        codebooks: centroids by width.
        execution: `coded` multiplies by codes, `dense` decodes once after loading, `auto` is `dense` on the CPU and
            `coded` elsewhere.
    """

    block_size: int
    scale: ScaleKind
    codebooks: dict[int, tuple[float, ...]]
    execution: Execution = "auto"

    def parts(self) -> tuple[str, ...]:
        """Return the names of the tensors that store one parameter."""
        return SCALE_FORMATS[self.scale].parts

    def empty_parts(self, shape: tuple[int, ...], bits: int) -> dict[str, torch.Tensor]:
        """Return empty tensors for a weight (..., out, in), on the current default device."""
        parts = layout(shape, bits, self.block_size, self.scale)
        return {name: torch.empty(part, dtype=dtype) for name, (part, dtype) in parts.items()}

    def bits_of(self, codes_shape: tuple[int, ...], columns: int) -> int:
        """Return the width of a `codes` tensor of this shape; any width if it is missing, as loading will fail."""
        if not codes_shape:
            return min(self.codebooks)
        return codes_shape[-1] * 8 // padded_columns(columns, self.block_size)

    def centroids(self, bits: int, device: torch.device) -> torch.Tensor:
        """Return float32 (2^bits,), cached by device; torch.compile warns about caches, and makes a constant of it."""
        make = torch.tensor if torch.compiler.is_compiling() else _on_device
        return make(self.codebooks[bits], dtype=torch.float32, device=device)

    def dense(self, device: torch.device) -> bool:
        """Return whether parameters on `device` are decoded once, rather than multiplied as codes."""
        return self.execution == "dense" or (self.execution == "auto" and device.type == "cpu")

    def decode(
        self, codes: torch.Tensor, scales: torch.Tensor, base: torch.Tensor | None, bits: int, columns: int
    ) -> torch.Tensor:
        """Decode a parameter, or any leading part of it, to float32 (..., out, in)."""
        lead = codes.shape[:-1]
        weight = decode_rows(
            codes.flatten(0, -2),
            scales.flatten(0, -2),
            None if base is None else base.flatten(),
            self.centroids(bits, codes.device),
            self.block_size,
            columns,
        )
        return weight.reshape(*lead, columns)


_on_device = lru_cache(maxsize=64)(torch.tensor)


class CodedModule(nn.Module):
    """A module that holds the stored tensors of coded parameters as buffers.

    Attributes:
        compute_dtype: dtype of decoded weights.
    """

    compute_dtype: torch.dtype

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Move the module or change its dtype; stored tensors keep their dtype, because kernels read their bits.

        Decoded weights get the new dtype.
        """
        stored = {n: t for n, t in self._buffers.items() if t is not None and n.split("_")[0] in PARTS}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in stored.items():
            after = self._buffers[name]
            if after is not None and after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        self.compute_dtype = fn(torch.empty(0, dtype=self.compute_dtype)).dtype
        return self
