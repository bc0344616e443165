"""The encoder for CUDA devices, in CUDA C++: the bytes of the reference. The kernel is in encode/encode.cu."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch

from ..codes import SCALE_FORMATS, CodeTables, bits_of, ceil_div, padded_columns
from ..common import DTYPE_IDS, CudaKernel, Launch, shared_per_multiprocessor, traceable
from .cuda_config import QUAD, SOURCE, EncodeKernelConfig, kernel_table, searched_values
from .types import EncodedRows, ScaleKind, encoded_layout

_KERNEL = CudaKernel(SOURCE, name="encode", fma=False)
_LARGE_SMEM_BYTES = 210 * 1024
"""Shared memory of a multiprocessor from which on two CTAs of about 100 KB each fit. Not measured."""
_BASE_DTYPE = SCALE_FORMATS["log8"].base_dtype


@lru_cache(maxsize=64)
def _table_on(centroids: bytes, config: EncodeKernelConfig, device: torch.device) -> tuple[torch.Tensor, int]:
    """Return `kernel_table` on a device, and the number of values at its end."""
    tables = CodeTables.from_centroids(np.frombuffer(centroids, dtype=np.float32).copy())
    return torch.from_numpy(kernel_table(tables, config)).to(device), len(searched_values(tables))


def encode_rows_cuda(
    weight: torch.Tensor, tables: CodeTables, block_size: int, scale: ScaleKind, search: bool
) -> EncodedRows:
    """Encode rows on a CUDA device; see `encode_rows`."""
    centroids, log8 = torch.from_numpy(tables.centroids), scale == "log8"
    codes, scales, base, error, energy = _encode(weight, centroids, block_size, log8, search)
    return EncodedRows(codes, scales, base if log8 else None, error, energy)


def prepare_encode_cuda(
    weight: torch.Tensor, tables: CodeTables, block_size: int, scale: ScaleKind, search: bool, out: EncodedRows
) -> Launch | None:
    """Prepare a launch, see `prepare_encode`; None where the kernel cannot read `weight` as it is."""
    if not len(weight) or not _is_whole(weight, block_size):
        return None
    base = weight.new_empty((0,), dtype=_BASE_DTYPE) if out.base is None else out.base
    made = [out.codes, out.scales, base, out.error, out.energy]
    return _prepare(weight, torch.from_numpy(tables.centroids), block_size, scale == "log8", search, made)


def _encode_on_its_device(
    weight: torch.Tensor, centroids: torch.Tensor, block_size: int, log8: bool, search: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the fields of EncodedRows; `centroids` is on the CPU, and only `log8` fills the base."""
    if weight.shape[1] == 0:
        raise ValueError("a row to encode has no columns")
    whole = whole_blocks(weight, block_size)
    out = empty(whole, bits_of(centroids), block_size, log8)
    if len(weight):
        _prepare(whole, centroids, block_size, log8, search, out)()
    return tuple(out)  # type: ignore[return-value]


_encode_op = torch.library.custom_op("hlwq::encode_rows", _encode_on_its_device, mutates_args=())
_encode = traceable(_encode_op, _encode_on_its_device)


@_encode_op.register_fake
def _(
    weight: torch.Tensor, centroids: torch.Tensor, block_size: int, log8: bool, search: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, columns = weight.shape
    whole = weight.new_empty((rows, padded_columns(columns, block_size)))
    return tuple(empty(whole, bits_of(centroids), block_size, log8))  # type: ignore[return-value]


def empty(whole: torch.Tensor, bits: int, block_size: int, log8: bool) -> list[torch.Tensor]:
    """Return unfilled codes, scales, base, error and energy; an op returns tensors, so `fp16` has a base as well."""
    parts = {
        "base": (whole.shape[:1], _BASE_DTYPE),
        **encoded_layout(tuple(whole.shape), bits, block_size, "log8" if log8 else "fp16"),
    }
    return [whole.new_empty(shape, dtype=dtype) for shape, dtype in (parts[name] for name in EncodedRows._fields)]


def _prepare(
    whole: torch.Tensor, centroids: torch.Tensor, block_size: int, log8: bool, search: bool, out: list[torch.Tensor]
) -> Launch:
    config = EncodeKernelConfig(
        bits=bits_of(centroids),
        block_size=block_size,
        log8=log8,
        search=search,
        dtype=whole.dtype,
        large_smem=shared_per_multiprocessor(whole.device) >= _LARGE_SMEM_BYTES,
    )
    config, held, threads = arrangement(config, *out[1].shape)
    table, cells = _table_on(centroids.numpy().tobytes(), config, whole.device)
    shared = config.shared_bytes(threads, cells)
    resident = _KERNEL.resident(whole.device, config.macros, threads, shared)
    arguments = kernel_arguments(whole, held, table, cells, out)
    groups = ceil_div(len(whole), held)
    return _KERNEL.prepare(whole.device, config.macros, (min(groups, resident),), threads, *arguments, shared=shared)


def arrangement(config: EncodeKernelConfig, rows: int, blocks: int) -> tuple[EncodeKernelConfig, int, int]:
    """Return the config for a matrix of `rows` rows of `blocks` blocks, the rows per CTA and the threads per CTA."""
    if blocks > config.max_threads:
        return replace(config, loop=True), 1, config.max_threads
    held = min(config.max_threads // blocks, rows)
    return config, held, ceil_div(held * blocks, 32) * 32


def kernel_arguments(
    whole: torch.Tensor, held: int, table: torch.Tensor, cells: int, out: list[torch.Tensor]
) -> list[torch.Tensor | int]:
    """Return the arguments of the kernel, in order; ints have 64 bits."""
    codes, scales, base, error, energy = out
    rows, blocks = scales.shape
    return [whole, rows, blocks, held, table, cells, codes, codes.shape[1], scales, base, error, energy]


def _is_whole(weight: torch.Tensor, block_size: int) -> bool:
    """Return whether `whole_blocks` would return the weight itself."""
    aligned = weight.data_ptr() % QUAD == 0 and weight.shape[1] % block_size == 0
    return weight.dtype in DTYPE_IDS and weight.is_contiguous() and aligned


def whole_blocks(weight: torch.Tensor, block_size: int) -> torch.Tensor:
    """Return the weight in a dtype and layout that can be loaded 16 bytes at a time; copied only if needed."""
    if weight.dtype not in DTYPE_IDS:
        weight = weight.to(torch.float32)
    padding = -weight.shape[1] % block_size
    if padding:
        weight = torch.nn.functional.pad(weight, (0, padding))
    weight = weight.contiguous()
    return weight if weight.data_ptr() % QUAD == 0 else weight.clone()
