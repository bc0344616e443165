"""The CUDA device that the tests of this folder need, and weights made on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

needs_cuda = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
CUDA = torch.device("cuda", 0)


def made_rows(weights: int, columns: int, dtype: torch.dtype, seed: int, chunk: int = 2**24) -> Iterator[torch.Tensor]:
    """Weights in chunks of rows: normal, heavy-tailed, of sizes from 1e-20 to 1e20, with rows of zeros and outliers."""
    generator = torch.Generator(CUDA).manual_seed(seed)
    rows = chunk // columns
    for first in range(0, weights, rows * columns):
        w = torch.randn(rows, columns, device=CUDA, generator=generator)
        tail = torch.randn(rows // 4, columns, device=CUDA, generator=generator).abs() + 0.02
        w[: rows // 4] /= tail
        if dtype == torch.float16:
            w.clamp_(-60000.0, 60000.0)
        else:
            w[rows // 4 : rows // 2] *= 10.0 ** torch.linspace(-20, 20, rows // 2 - rows // 4, device=CUDA)[:, None]
        w[rows // 2] = 0
        w[rows // 2 + 1, first % columns] = 3.0e4
        w[rows // 2 + 2 : rows // 2 + 40] = w[rows // 2 + 2 : rows // 2 + 40].round()
        yield w.to(dtype)
