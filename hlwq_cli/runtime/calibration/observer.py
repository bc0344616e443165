"""See each product of a forward pass whose one factor is a watched weight, whatever module or function computes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .input_sums import InputSums, Watched

Product = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Inputs (..., tokens, in), weight (..., in, out) and, of a grouped product, the end of each expert's tokens."""
_aten: Any = torch.ops.aten


def _linear(args: tuple[Any, ...]) -> Iterator[Product]:
    yield args[0].reshape(-1, args[0].shape[-1]), args[1].t(), None


def _mm(args: tuple[Any, ...]) -> Iterator[Product]:
    yield args[0], args[1], None
    yield args[1].mT, args[0].mT, None


def _addmm(args: tuple[Any, ...]) -> Iterator[Product]:
    yield from _mm(args[1:3])


def _grouped(args: tuple[Any, ...]) -> Iterator[Product]:
    if args[0].dim() == 2 and args[1].dim() == 3:
        yield args[0], args[1], args[2]


_PRODUCTS: Mapping[Any, Callable[[tuple[Any, ...]], Iterator[Product]]] = {
    _aten.linear.default: _linear,
    _aten.mm.default: _mm,
    _aten.bmm.default: _mm,
    _aten.addmm.default: _addmm,
    _aten.baddbmm.default: _addmm,
    _aten._grouped_mm.default: _grouped,
}
"""Matrix products, to which torch breaks down all others, by what their arguments are."""
_GROUPED_FALLBACK = "transformers::grouped_mm_fallback"


class WatchedWeights:
    """The weights to look for, by the address of their memory."""

    def __init__(self) -> None:
        self._at: dict[int, Watched] = {}

    def add(self, weight: torch.Tensor, watched: Watched) -> None:
        """Watch a weight, which is alone in its memory."""
        self._at[weight.untyped_storage().data_ptr()] = watched

    def clear(self) -> None:
        """Watch nothing."""
        self._at.clear()

    def find(self, factor: torch.Tensor) -> tuple[Watched, int] | None:
        """Return the weight that (..., in, out) is a part of, and the first matrix; None where `in` is not its input.

        A product over a weight's outputs says nothing of its inputs: attention with a compressed cache computes such.
        """
        if factor.device.type == "meta" or not factor.numel():
            return None
        watched = self._at.get(factor.untyped_storage().data_ptr())
        if watched is None or factor.shape[-2] != watched.inputs or factor.stride(-2) != 1:
            return None
        if factor.shape[-1] > 1 and factor.stride(-1) % watched.inputs:
            return None
        return watched, factor.storage_offset() // (watched.shape[-2] * watched.inputs)


class ProductObserver(TorchDispatchMode):
    """Adds the inputs of watched weights to their sums while it is entered.

    Args:
        weights: to look for.
        sums: to add to.
        after: called with the name of the parameter when a product has been seen and before it is computed.
    """

    def __init__(self, weights: WatchedWeights, sums: InputSums, after: Callable[[str], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._weights, self._sums, self._after = weights, sums, after

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Look at a product, and compute it."""
        operands = _PRODUCTS.get(func)
        if operands is None and func.name() == _GROUPED_FALLBACK:
            operands = _grouped
        if operands is not None:
            every = (*args, *(kwargs or {}).values()) if len(args) < 3 else args
            for rows, weight, ends in operands(every):
                found = self._weights.find(weight)
                if found is not None:
                    self._add(*found, rows, ends)
                    self._after(found[0].name)
                    break
        return func(*args, **(kwargs or {}))

    def _add(self, watched: Watched, first: int, rows: torch.Tensor, ends: torch.Tensor | None) -> None:
        if ends is not None:
            start = 0
            for expert, end in enumerate(ends.tolist()):
                self._sums.add(watched, rows[start:end], first + expert)
                start = end
        elif rows.dim() == 3:
            for i, some in enumerate(rows):
                used = some[(some != 0).any(dim=-1)]  # a router may give each expert all tokens, most of them as zeros
                self._sums.add(watched, used, min(first + i, watched.experts - 1))
        else:
            self._sums.add(watched, rows, first)
