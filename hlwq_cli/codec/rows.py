"""Encode rows of weights by a scheme: the one way from files and tests to the encoders of the kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hlwq_kernels import EncodedRows
from hlwq_kernels import encode_rows as encode_rows_by_tables
from hlwq_kernels import prepare_encode as prepare_encode_by_tables
from hlwq_kernels.codes import PartLayout
from hlwq_kernels.common import supports_nvrtc
from hlwq_kernels.encode import encoded_layout as encoded_layout_by_bits

from .scheme import Scheme


def encode_rows(weight: torch.Tensor, scheme: Scheme) -> EncodedRows:
    """Encode (rows, columns) weights of any floating dtype; the bytes are the same on every device."""
    return encode_rows_by_tables(weight, scheme.tables, scheme.block_size, scheme.scale, scheme.search)


def prepare_encode(weight: torch.Tensor, scheme: Scheme, out: EncodedRows) -> Callable[[], None]:
    """Return a function that encodes the current content of `weight` into `out`, on the current stream of the GPU.

    Args:
        weight: (rows, columns); the caller fills it before each call, and must not move or free it.
        scheme: how to encode.
        out: memory of the shapes and dtypes of `encoded_layout` on the same device; likewise not to be moved or freed.
    """
    return prepare_encode_by_tables(weight, scheme.tables, scheme.block_size, scheme.scale, scheme.search, out)


def encoded_layout(shape: tuple[int, int], scheme: Scheme) -> dict[str, PartLayout]:
    """Return the shape and dtype of each tensor of `EncodedRows` for (rows, columns) weights; no base for `fp16`."""
    return encoded_layout_by_bits(shape, scheme.bits, scheme.block_size, scheme.scale)


def has_encode_kernel(device: torch.device) -> bool:
    """Return whether a compiled kernel encodes on this GPU. It needs no memory except for its results."""
    return supports_nvrtc(device)
