"""What coded modules share: how a coded parameter is stored, and how it is executed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Self

import torch
from torch import nn

from hlwq_kernels import decode_rows
from hlwq_kernels.codes import SCALE_FORMATS, ScaleKind, layout, padded_columns

from .mapped import release_pages

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
        """Return the width of a `codes` tensor of this shape; any width if none fits, as loading will fail."""
        bits = codes_shape[-1] * 8 // padded_columns(columns, self.block_size) if codes_shape else 0
        return bits if bits in self.codebooks else min(self.codebooks)

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

    Where weights are decoded once, on a CPU, the stored tensors are plain attributes of the same names instead. They
    are still saved with the model, but stay where they are when it is moved: on pages of the checkpoint's file.

    Attributes:
        compute_dtype: dtype of decoded weights.
        part_names: names of the stored tensors.
        released: names of those that are no buffers.
    """

    compute_dtype: torch.dtype
    part_names: tuple[str, ...] = ()
    released: tuple[str, ...] = ()

    def hold_parts(self, parts: Mapping[str, torch.Tensor], tail: str = "") -> None:
        """Register the stored tensors of one parameter, whose names end in `tail`, as buffers."""
        for name, tensor in parts.items():
            self.register_buffer(f"{name}{tail}", tensor)
        self.part_names = (*self.part_names, *(f"{name}{tail}" for name in parts))

    @property
    def widths(self) -> set[int]:
        """Widths of its codes."""
        raise NotImplementedError

    def materialize(self) -> None:
        """Decode the weights now, if the module's execution is dense on its device."""
        raise NotImplementedError

    def decode_again(self) -> None:
        """Replace the values of decoded weights, in the same memory and on the same device, after codes have changed.

        The stored tensors may be on another device, and captured graphs read the same memory.
        """
        raise NotImplementedError

    def release(self) -> None:
        """Turn stored tensors in host memory from buffers into attributes, and give their pages back."""
        stored = {n: t for n, t in self._stored().items() if t.device.type == "cpu"}
        for name, tensor in stored.items():
            del self._buffers[name]
            self.__dict__[name] = tensor
        self.released = (*self.released, *stored)
        release_pages(stored.values())

    def _stored(self) -> dict[str, torch.Tensor]:
        return {n: t for n in self.part_names if (t := self._buffers.get(n)) is not None}

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Move the module or change its dtype; stored tensors keep their dtype, because kernels read their bits.

        Decoded weights get the new dtype.
        """
        stored = self._stored()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in stored.items():
            after = self._buffers[name]
            if after is not None and after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        self.compute_dtype = fn(torch.empty(0, dtype=self.compute_dtype)).dtype
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination |= {prefix + name: self.__dict__[name] for name in self.released}

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Load stored tensors, and decode them where execution is dense, or where the ones before were decoded."""
        is_new = any(prefix + name in state_dict for name in (*self.released, *self._stored()))
        for name in self.released if is_new else ():
            self._buffers[name] = self.__dict__.pop(name).clone()  # a copy, as those on pages of a file stay unwritten
        self.released = () if is_new else self.released
        super()._load_from_state_dict(state_dict, prefix, *args)
        if is_new:
            self.decode_again()
            self.materialize()
