"""Codes of the tokens in a key/value cache: each head of each token is rotated, given one scale, coded and packed.

A head of d values is padded with zeros to a multiple of 32 (most need none) and rotated in blocks of the largest power
of two that divides it, which is the whole head for 64, 128, 256 and 512. Its scale is one byte k: 2^((k-128)/8), 0 for
k = 0. A head whose root mean square is 2^15.5 and more, or not finite, gets k = 255, which is not a number and decodes
so. The scale is the best of six round the root mean square, so it costs a byte where float16 costs two, and errs a
fifth less than the root mean square itself.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from ..codes.hadamard import tree_sum
from ..codes.planes import pack_codes, unpack_codes
from ..common.cuda_kernel import runs_nvrtc
from ..linear.linear import rotate_activation

STEPS_PER_OCTAVE = 8
_UNIT = 128
_NAN = 255
_LARGEST_DIM = 512
"""Of heads that the CUDA encoder holds in registers."""
SEARCH = (-3, -2, -1, 0, 1, 2)
"""Candidate scales, in steps round the root mean square. Of 1/16 octave, fifteen would err 2 to 7 % less again."""


def _kv_scales() -> torch.Tensor:
    steps = [0.0] + [2.0 ** ((k - _UNIT) / STEPS_PER_OCTAVE) for k in range(1, _NAN)] + [float("nan")]
    return torch.tensor(steps, dtype=torch.float32)


KV_SCALES = _kv_scales()
"""float32 (256,): what a scale byte stands for."""

# Mean squares of mantissa m in [1, 2) lie so many quarter octaves up as there are thresholds at or below m.
THRESHOLDS = tuple(float(np.float32(2.0 ** ((i + 0.5) / 4))) for i in range(4))


def padded_dim(dim: int) -> int:
    """The values that are stored of a head of `dim`."""
    return -(-dim // 32) * 32


def rotation_block(dim: int) -> int:
    """The values of a head of `dim` that are rotated together."""
    padded = padded_dim(dim)
    return padded & -padded


class KVTables(NamedTuple):
    """A codebook on a device.

    Attributes:
        centroids: float32 (2^bits,), ascending.
        boundaries: float32 (2^bits - 1,), the midpoints between neighbours.
        scales: float32 (256,), `KV_SCALES`.
    """

    centroids: torch.Tensor
    boundaries: torch.Tensor
    scales: torch.Tensor

    @property
    def bits(self) -> int:
        """Width of a code."""
        return self.centroids.numel().bit_length() - 1

    @classmethod
    def of(cls, centroids: tuple[float, ...], device: torch.device) -> KVTables:
        """The tables of a codebook of 2^bits ascending values."""
        c = torch.tensor(centroids, dtype=torch.float64)
        middles = ((c[1:] + c[:-1]) / 2).to(torch.float32)
        return cls(*(t.to(device) for t in (c.to(torch.float32), middles, KV_SCALES)))


def encode_kv(x: torch.Tensor, tables: KVTables) -> tuple[torch.Tensor, torch.Tensor]:
    """Code the heads of tokens.

    Args:
        x: (..., dim), floating.
        tables: the codebook, on the same device.

    Returns:
        uint8 codes (..., padded * bits / 8), packed planes, and uint8 scales (...).
    """
    if x.shape[-1] <= _LARGEST_DIM and runs_nvrtc(x.device):
        from .kv_encode_cuda import encode_kv_cuda

        return encode_kv_cuda(x, tables)
    return encode_kv_reference(x, tables)


def encode_kv_reference(x: torch.Tensor, tables: KVTables) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference of `encode_kv`."""
    dim = x.shape[-1]
    z = rotate_activation(x.to(torch.float32), rotation_block(dim))
    middle = _scale_index(_energy(z) * float(np.float32(1.0 / z.shape[-1])))
    best, found = torch.full_like(middle, torch.inf, dtype=torch.float32), torch.zeros_like(middle)
    codes = torch.zeros(z.shape, dtype=torch.uint8, device=x.device)
    for step in SEARCH:
        k = (middle + step).clamp(1, _NAN - 1)
        s = tables.scales[k]
        index = torch.bucketize(z * (1.0 / s)[..., None], tables.boundaries)
        error = _energy(z - tables.centroids[index] * s[..., None])
        better = error < best
        best, found = torch.where(better, error, best), torch.where(better, k, found)
        codes = torch.where(better[..., None], index.to(torch.uint8), codes)
    k = torch.where(middle == 0, 0, torch.where(middle >= _NAN, _NAN, found))
    return pack_codes(codes, tables.bits), k.to(torch.uint8)


def _energy(z: torch.Tensor) -> torch.Tensor:
    """Sums of squares, as one fixed tree over a power of two."""
    width = 1 << (z.shape[-1] - 1).bit_length()
    return tree_sum(torch.nn.functional.pad(z * z, (0, width - z.shape[-1])))


def _scale_index(mean_square: torch.Tensor) -> torch.Tensor:
    """The k nearest to the root of a mean square: 0 for nothing to code, 255 for what no scale can hold."""
    mantissa, exponent = torch.frexp(mean_square)
    above = sum((2 * mantissa >= t).to(torch.int64) for t in THRESHOLDS)
    k = _UNIT + 4 * (exponent.to(torch.int64) - 1) + above
    k = torch.where(mean_square.isfinite() & (k < _NAN - 2), k.clamp(min=0), _NAN)
    return torch.where(mean_square == 0, 0, k)


def decode_rotated(
    codes: torch.Tensor, scales: torch.Tensor, tables: KVTables, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Decode all but the rotation: (..., padded), of `dtype`."""
    values = tables.centroids[unpack_codes(codes, tables.bits).to(torch.int32)]
    return (values * tables.scales[scales.to(torch.int32)][..., None]).to(dtype)


def rotate_heads(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Rotate heads of `dim` values, padded or not, to (..., padded): its own inverse; float32."""
    return rotate_activation(x.to(torch.float32), rotation_block(dim))


def decode_kv(codes: torch.Tensor, scales: torch.Tensor, tables: KVTables, dim: int) -> torch.Tensor:
    """What was coded, to the error of the codes: float32 (..., dim)."""
    return rotate_heads(decode_rotated(codes, scales, tables), dim)[..., :dim]
