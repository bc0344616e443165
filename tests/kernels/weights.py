"""Weights to code: hostile ones, and one that no random number generator's release can change."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from hlwq_cli.codec import lloyd_max
from hlwq_kernels import CodeTables, EncodedRows, decode_rows

BITS = tuple(range(2, 9))
BLOCK_SIZES = (32, 64, 128, 256)


def tables(bits: int) -> CodeTables:
    return CodeTables.from_centroids(lloyd_max(bits))


def sylvester(n: int) -> np.ndarray:
    """The Sylvester Hadamard matrix of +1 and -1, by its recursive definition, in float64."""
    matrix = np.ones((1, 1))
    while len(matrix) < n:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def hostile_rows(columns: int, seed: int = 0) -> torch.Tensor:
    """One row of every kind that has broken an encoder, float32."""
    generator = torch.Generator().manual_seed(seed)

    def normal() -> torch.Tensor:
        return torch.randn(columns, generator=generator)

    student = normal() / (torch.randn(3, columns, generator=generator).square().mean(dim=0)).sqrt()
    outlier = torch.zeros(columns)
    outlier[columns // 2] = -3.0e-4
    exponents = torch.randint(-140, 120, (columns,), generator=generator)
    rows = {
        "normal": normal(),
        "student t3": student,
        "zero": torch.zeros(columns),
        "negative zero": -torch.zeros(columns),
        "constant": torch.full((columns,), -0.37),
        "denormal": torch.sign(normal()) * 1e-39,
        "one outlier": outlier,
        "outlier among small": normal() * 1e-4 + outlier * 1e6,
        "huge range": torch.ldexp(normal().clamp(-1.9, 1.9), exponents),
        "1e30": normal() * 1e30,
        "1e-30": normal() * 1e-30,
        "largest allowed": torch.full((columns,), 2.0**119),
        "smallest coded": torch.full((columns,), 2.0**-110),
        "few values": (normal() * 2).round(),
        "ramp": torch.arange(columns) / 7.0,
    }
    return torch.stack(list(rows.values()))


def lcg_rows(rows: int = 8, columns: int = 300) -> torch.Tensor:
    """Bell-shaped pseudo-random float32 weights, each row of another size, made of integers only.

    Sums of four 16-bit draws of a linear congruential generator (Numerical Recipes' constants) times powers of two.
    """
    state, values = 1, []
    for _ in range(rows * columns):
        total = 0
        for _ in range(4):
            state = (1664525 * state + 1013904223) % 2**32
            total += state >> 16
        values.append(total - 2 * 65535)
    exact = torch.tensor(values, dtype=torch.float64).reshape(rows, columns)
    exact *= 2.0 ** torch.arange(-17, rows - 17, dtype=torch.float64)[:, None]
    exact[1, 7] *= 64
    exact[2, 64:128] *= 2.0**-12
    exact[3, 128:] = 0
    return exact.to(torch.float32)


def digest(*tensors: torch.Tensor | None) -> str:
    """The first 16 hex digits of the sha256 of the tensors' bytes."""
    data = b"".join(t.contiguous().view(torch.uint8).numpy().tobytes() for t in tensors if t is not None)
    return hashlib.sha256(data).hexdigest()[:16]


def decoded(coded: EncodedRows, table: CodeTables, block_size: int, columns: int) -> torch.Tensor:
    centroids = torch.from_numpy(table.centroids)
    return decode_rows(coded.codes, coded.scales, coded.base, centroids, block_size, columns)


def same_bytes(a: EncodedRows, b: EncodedRows) -> bool:
    pairs = zip((a.codes, a.scales, a.base), (b.codes, b.scales, b.base), strict=True)
    return all((x is None and y is None) or (x is not None and y is not None and bytes_equal(x, y)) for x, y in pairs)


def bytes_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and digest(a) == digest(b)
