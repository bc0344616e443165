"""Modules of any class that hold codes: the original class runs on decoded parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hlwq_kernels.codes import QuantizedWeight

from ..transformers_private import change_class, skip_initialization
from .format import CodedModule, QuantFormat
from .names import tail_of

_running: ContextVar[Mapping[int, dict[str, torch.Tensor]] | None] = ContextVar("running", default=None)
"""Parameters decoded for the forward passes that run in this thread, by the ids of their modules."""


@dataclass(frozen=True)
class ParameterCodes:
    """How a module's parameter is coded.

    Attributes:
        bits: width of a code.
        is_transposed: whether the module holds it as (..., in, out); it is coded as (..., out, in).
    """

    bits: int
    is_transposed: bool = False


class HLWQModule(CodedModule):
    """The coded part of a module; `code_parameters` mixes it into the original class.

    The parameters are decoded once if execution is dense, else at each forward pass for as long as it runs. The
    original class then runs on them, under their own names and in its own layout.

    Attributes:
        bits: width of a code, by parameter.
        columns: length of a coded row, by parameter.
        tails: what follows `codes` in the names of stored tensors, by parameter.
        transposed: the parameters that the module holds as (..., in, out).
        dense: whether the parameters are decoded.
    """

    if TYPE_CHECKING:
        quant_format: QuantFormat
        bits: dict[str, int]
        columns: dict[str, int]
        tails: dict[str, str]
        transposed: frozenset[str]
        dense: bool

    def decoded(self, parameter: str) -> torch.Tensor:
        """Return a decoded parameter in the module's layout and dtype."""
        codes, scales, base = self._parts(parameter)
        columns = self.columns[parameter]
        if codes.is_meta:
            weight = torch.empty((*codes.shape[:-1], columns), dtype=self.compute_dtype, device="meta")
        else:
            weight = self.quant_format.decode(codes, scales, base, self.bits[parameter], columns)
            weight = weight.to(self.compute_dtype)
        return weight.transpose(-1, -2).contiguous() if parameter in self.transposed else weight

    @property
    def widths(self) -> set[int]:
        """Widths of its codes."""
        return set(self.bits.values())

    def materialize(self) -> None:
        """Decode the parameters now, if the module's execution is dense on its device."""
        first = next(iter(self.bits))
        if self.dense or not self.quant_format.dense(self._parts(first)[0].device):
            return
        for parameter in self.bits:
            self.register_buffer(f"dense_{parameter}", self.decoded(parameter), persistent=False)
        self.dense = True
        self.release()

    def decode_again(self) -> None:
        """Replace the values of the decoded parameters where they are; see `CodedModule`."""
        for parameter in self.bits if self.dense else ():
            getattr(self, f"dense_{parameter}").copy_(self.decoded(parameter))
        if self.dense:
            self.release()

    def _parts(self, parameter: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        tail = self.tails[parameter]
        return getattr(self, f"codes{tail}"), getattr(self, f"scales{tail}"), getattr(self, f"base{tail}", None)

    def _coded(self, parameter: str) -> QuantizedWeight:
        codes, scales, base = self._parts(parameter)
        centroids = self.quant_format.centroids(self.bits[parameter], codes.device)
        return QuantizedWeight(codes, scales, base, centroids, self.quant_format.block_size)

    def _value(self, parameter: str) -> torch.Tensor:
        """Return a parameter as the original class reads it."""
        if self.dense:
            return getattr(self, f"dense_{parameter}")  # type: ignore[no-any-return]
        held = None if torch.compiler.is_compiling() else (_running.get() or {}).get(id(self))
        if held is None:
            return self.decoded(parameter)
        if parameter not in held:
            held[parameter] = self.decoded(parameter)
        return held[parameter]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the original class, on parameters that are decoded while it runs."""
        if self.dense or torch.compiler.is_compiling():
            return super().forward(*args, **kwargs)
        with _decoding(self):
            return super().forward(*args, **kwargs)


@contextmanager
def _decoding(module: HLWQModule) -> Iterator[None]:
    """Decode each parameter of a module at most once inside this context."""
    token = _running.set({**(_running.get() or {}), id(module): {}})
    try:
        yield
    finally:
        _running.reset(token)


def _property(parameter: str) -> property:
    def value(module: HLWQModule) -> torch.Tensor:
        return module._value(parameter)

    return property(value, doc=f"The decoded `{parameter}`.")


_classes: dict[tuple[type, type, tuple[str, ...]], type[nn.Module]] = {}


def _coded_class(mixin: type[HLWQModule], original: type[nn.Module], parameters: tuple[str, ...]) -> type[nn.Module]:
    """Return the original class with a mixin before it, and properties for its coded parameters."""
    key = (mixin, original, parameters)
    if key not in _classes:
        members = {"__doc__": mixin.__doc__, **{name: _property(name) for name in parameters}}
        _classes[key] = type(f"HLWQ{original.__name__}", (mixin, original), members)
    return _classes[key]


def code_parameters(
    module: nn.Module,
    coded: Mapping[str, ParameterCodes],
    quant_format: QuantFormat,
    mixin: type[HLWQModule] = HLWQModule,
    has_buffers: bool = True,
) -> dict[str, dict[str, torch.Tensor]]:
    """Make a module on the meta device hold codes instead of some of its parameters, in place.

    Args:
        module: the module.
        coded: how its parameters are coded, by name.
        quant_format: how codes are read.
        mixin: what runs the module.
        has_buffers: whether to register the stored tensors.

    Returns:
        The empty stored tensors of each parameter.
    """
    shapes = {name: coded_shape(module, name, how.is_transposed) for name, how in coded.items()}
    dtype = module.get_parameter(next(iter(coded))).dtype
    parts = {name: quant_format.empty_parts(shapes[name], how.bits) for name, how in coded.items()}
    for name in coded:
        delattr(module, name)
    change_class(module, _coded_class(mixin, type(module), tuple(coded)))
    assert isinstance(module, HLWQModule)
    skip_initialization(module)
    module.quant_format, module.compute_dtype, module.dense = quant_format, dtype, False
    module.bits = {name: how.bits for name, how in coded.items()}
    module.columns = {name: shape[-1] for name, shape in shapes.items()}
    module.tails = {name: tail_of(name, len(shape)) for name, shape in shapes.items()}
    module.transposed = frozenset(name for name, how in coded.items() if how.is_transposed)
    for name in coded if has_buffers else ():
        module.hold_parts(parts[name], module.tails[name])
    return parts


def coded_shape(module: nn.Module, parameter: str, is_transposed: bool) -> tuple[int, ...]:
    """Return the shape (..., out, in) in which a module's parameter is coded."""
    *lead, rows, columns = module.get_parameter(parameter).shape
    return (*lead, columns, rows) if is_transposed else (*lead, rows, columns)
