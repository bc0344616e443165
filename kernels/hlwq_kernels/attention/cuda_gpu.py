"""Attention of one token per sequence over a quantized cache on CUDA: launches of attention.cu and combine.cu."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch

from ..codes import ceil_div
from ..common import DTYPE_IDS, CudaKernel, Macros, num_sms, shared_per_multiprocessor, supports_nvrtc
from .kv_states import QuantizedKV
from .kv_tables import padded_dim, rotation_block

SOURCE = "attention/attention.cu"
COMBINE_SOURCE = "attention/combine.cu"
COMBINE_WARPS = 4
"""Warps of a CTA of combine.cu. Not measured against other numbers."""

_ATTEND = CudaKernel(SOURCE, name="attend")
_COMBINE = CudaKernel(COMBINE_SOURCE, name="combine_splits")
_MAX_DIM = 512
"""Values of a head at most: registers bound them. At 512 the kernel spills 8 to 80 bytes on sm_90 (docs/log.md)."""
_WARPS = 8
"""Warps of a CTA at most. Not measured against other numbers."""
_LARGE_SMEM_BYTES = 160 * 1024
"""Shared memory of a multiprocessor from which on tables may take 32 KB each. Not measured."""


def supports_attention(query: torch.Tensor, keys: QuantizedKV, values: QuantizedKV) -> bool:
    """Return whether the kernel supports these heads on this device."""
    fits = max(keys.dim, values.dim) <= _MAX_DIM and query.dtype in DTYPE_IDS
    return fits and supports_nvrtc(query.device)


@dataclass(frozen=True)
class AttentionKernelConfig:
    """What the kernel is compiled for.

    Attributes:
        bits: of keys and of values.
        dims: values of a head, of keys and of values.
        group: query heads to a key/value head.
        dtype: of queries, exact tokens and results.
        masked: whether there is a mask.
        capped: whether logits are capped.
        one_table: whether keys and values have the same codebook.
        large_smem: whether a multiprocessor has shared memory for tables of 32 KB.
    """

    bits: tuple[int, int]
    dims: tuple[int, int]
    group: int
    dtype: torch.dtype
    masked: bool = False
    capped: bool = False
    one_table: bool = True
    large_smem: bool = True

    @property
    def stored(self) -> tuple[int, int]:
        """Values of a head as stored, of keys and of values."""
        return padded_dim(self.dims[0]), padded_dim(self.dims[1])

    @property
    def rows(self) -> int:
        """Queries per CTA."""
        return 8 if self.group <= 8 else 16

    @property
    def team(self) -> int:
        """Warps that share the same tokens."""
        return ceil_div(self.stored[1], 64 if self.stored[1] <= 64 else 128)

    @property
    def warps(self) -> int:
        """Warps of a CTA: whole teams."""
        return _WARPS // self.team * self.team

    @property
    def exact(self) -> int:
        """Exact tokens per CTA."""
        return 16 if max(self.dims) > 256 else 32

    @property
    def tokens_per_pass(self) -> int:
        """Quantized tokens that a CTA reads at once."""
        return 16 * self.warps

    def copies(self, bits: int) -> int:
        """Return the copies of a table in shared memory: as many as fit into half of it, at most one per bank."""
        entries = 1 << (2 * bits if bits <= 6 else bits)
        return max(1, min(32, (8192 if self.large_smem else 4096) // entries))

    @cached_property
    def shared_bytes(self) -> int:
        """Bytes of shared memory; attention/shape.cuh checks them."""
        tables = [4 * self.copies(b) * (1 << (2 * b if b <= 6 else b)) for b in self.bits]
        part = 64 if self.stored[1] <= 64 else 128
        first = max(max(tables) + (tables[0] if self.one_table else sum(tables)), 4 * self.warps * 8 * (part + 4))
        small = 1024 + 64 + 8 * self.warps * self.rows + 16 * self.warps
        shares = self.warps * self.rows * 32 if self.team > 1 else 0
        lane = 16 if self.stored[0] % 128 == 64 else 32
        queries = ceil_div(self.stored[0], 4 * lane) * 4 * lane * self.rows * 2
        return max(first + small + shares + queries, 4 * self.rows * (self.dims[0] + self.exact))

    @cached_property
    def macros(self) -> Macros:
        """The macros of attention/attention.cu and its headers."""
        (k_bits, v_bits), (k_stored, v_stored) = self.bits, self.stored
        row_bytes = k_stored * k_bits // 8 | v_stored * v_bits // 8
        kind, wide = DTYPE_IDS[self.dtype], self.rows > 8 or max(self.bits) == 8
        return (
            ("BITS", k_bits), ("ALIGN", min(16, row_bytes & -row_bytes)), ("COPIES", self.copies(k_bits)),
            ("INPUT", kind), ("OUTPUT", kind), ("THREADS", 32 * self.warps), ("N", rotation_block(self.dims[0])),
            ("GATE", 0), ("V_BITS", v_bits), ("V_COPIES", self.copies(v_bits)), ("ONE_TABLE", int(self.one_table)),
            ("K_DIM", self.dims[0]), ("V_DIM", self.dims[1]), ("K_STORED", k_stored), ("V_STORED", v_stored),
            ("GROUP", self.group), ("MASKED", int(self.masked)), ("CAPPED", int(self.capped)),
            ("CTAS", 1 if wide and max(self.stored) > 128 else 2), ("SHARED", self.shared_bytes),
        )  # fmt: skip

    @cached_property
    def combine_macros(self) -> Macros:
        """The macros of attention/combine.cu and its headers."""
        kind = DTYPE_IDS[self.dtype]
        return (
            ("INPUT", kind), ("OUTPUT", kind),
            ("N", rotation_block(self.dims[1])), ("GATE", 0), ("V_DIM", self.dims[1]), ("V_STORED", self.stored[1]),
            ("WARPS", COMBINE_WARPS),
        )  # fmt: skip


def attend_cuda(
    query: torch.Tensor,
    keys: QuantizedKV,
    values: QuantizedKV,
    mask: torch.Tensor | None,
    scaling: float,
    softcap: float,
) -> torch.Tensor:
    """Compute attention of one query per sequence; see `attend`.

    Args:
        query: (batch, query heads, dim).
        keys: with `first` = `coded`.
        values: likewise.
        mask: boolean (batch or 1, tokens), true where allowed; or None.
        scaling: of logits.
        softcap: of logits; 0 is none.

    Returns:
        (batch, query heads, dim of values), of the query's dtype.
    """
    device, (batch, query_heads, _), heads = query.device, query.shape, keys.codes.shape[1]
    config = _config_of(query, keys, values, mask is not None, softcap != 0.0)
    chunks, exact_splits = ceil_div(config.group, config.rows), ceil_div(keys.exact.shape[2], config.exact)
    resident = _ATTEND.resident(device, config.macros, 32 * config.warps, config.shared_bytes)
    ctas, passes = batch * heads * chunks, ceil_div(keys.coded, config.tokens_per_pass)
    coded_splits = _coded_splits(resident // ctas, num_sms(device) // ctas, exact_splits, passes)
    splits, rows, stored = exact_splits + coded_splits, batch * query_heads, config.stored[1]
    sums = query.new_empty(rows, splits, stored, dtype=torch.float32)
    row_max, row_sum = query.new_empty(2, rows, splits, dtype=torch.float32)
    out = query.new_empty(batch, query_heads, values.dim)
    arguments = attend_arguments(query, keys, values, mask, scaling, softcap, exact_splits)
    _ATTEND.launch(
        device,
        config.macros,
        (splits, batch * heads, chunks),
        32 * config.warps,
        *arguments,
        sums,
        row_max,
        row_sum,
        shared=config.shared_bytes,
        overlap=True,
    )
    _COMBINE.launch(
        device,
        config.combine_macros,
        (rows,),
        32 * COMBINE_WARPS,
        sums,
        row_max,
        row_sum,
        exact_splits,
        splits,
        out,
        shared=combine_shared_bytes(config, splits),
        overlap=True,
    )
    return out


def _coded_splits(resident_ctas: int, sms: int, exact_splits: int, passes: int) -> int:
    """Return into how many splits to divide the quantized tokens of a head.

    Args:
        resident_ctas: CTAs per head that the device runs at once.
        sms: multiprocessors per head. That many CTAs have a multiprocessor each.
        exact_splits: CTAs for exact tokens. They are short, so their places are reserved only if the device runs more
            than four times as many CTAs.
        passes: how often a CTA would go through its loop if it took all tokens. Above `sms` passes each CTA takes at
            least two, because starting a CTA costs more than a pass.
    """
    places = max(1, resident_ctas - exact_splits if resident_ctas > 4 * exact_splits else resident_ctas)
    return min(places, passes if passes <= sms else max(sms, ceil_div(passes, 2)))


def combine_shared_bytes(config: AttentionKernelConfig, splits: int) -> int:
    """Return the bytes of shared memory that `combine_splits` takes."""
    return 4 * (2 * COMBINE_WARPS * config.stored[1] + splits)


def attend_arguments(
    query: torch.Tensor,
    keys: QuantizedKV,
    values: QuantizedKV,
    mask: torch.Tensor | None,
    scaling: float,
    softcap: float,
    exact_splits: int,
) -> tuple[Any, ...]:
    """Return the arguments of `attend` in attention/attention.cu, except its three results."""
    k_exact, v_exact = _by_head(keys.exact), _by_head(values.exact)
    exact, ring = k_exact.shape[2], 0 if keys.lengths is None else k_exact.shape[2]
    mask_stride = 0 if mask is None or mask.shape[0] == 1 else mask.stride(0)
    return (
        query.contiguous(), keys.codes.contiguous(), keys.scales.contiguous(), values.codes.contiguous(),
        values.scales.contiguous(), keys.tables.centroids, values.tables.centroids, keys.tables.scales, k_exact,
        v_exact, mask, keys.lengths, keys.coded, exact, ring, keys.scales.shape[-1], keys.codes.shape[1],
        k_exact.stride(1), v_exact.stride(1), mask_stride, exact_splits, ctypes.c_float(scaling),
        ctypes.c_float(softcap),
    )  # fmt: skip


@lru_cache(maxsize=None)
def _large_smem(device: torch.device) -> bool:
    return shared_per_multiprocessor(device) >= _LARGE_SMEM_BYTES


def _config_of(
    query: torch.Tensor, keys: QuantizedKV, values: QuantizedKV, masked: bool, capped: bool
) -> AttentionKernelConfig:
    return _cached_config(
        (keys.tables.bits, values.tables.bits),
        (keys.dim, values.dim),
        query.shape[1] // keys.codes.shape[1],
        query.dtype,
        masked,
        capped,
        keys.tables.centroids.data_ptr() == values.tables.centroids.data_ptr(),
        _large_smem(query.device),
    )


_cached_config = lru_cache(maxsize=None)(AttentionKernelConfig)


def _by_head(exact: torch.Tensor) -> torch.Tensor:
    """Return (batch, heads, tokens, dim) with heads at equal distances, each of them without gaps."""
    _, heads, _, dim = exact.shape
    even = exact.stride()[2:] == (dim, 1) and exact.stride(0) == heads * exact.stride(1)
    return exact if even else exact.contiguous()
