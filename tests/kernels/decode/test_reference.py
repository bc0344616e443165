"""The decoder: what codes stand for, as docs/format.md says it."""

import numpy as np
import pytest
import torch

from hlwq_kernels import pack_codes
from hlwq_kernels.codes import block_scales
from hlwq_kernels.decode import decode_rows_reference
from hlwq_kernels.decode.numba_cpu import decode_rows_numba
from tests.kernels.weights import BITS, BLOCK_SIZES, sylvester, tables

Stored = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def random_stored(bits: int, n: int, scale: str, rows: int = 7, blocks: int = 3) -> tuple[torch.Tensor, Stored]:
    """Any codes, scales and bases, and the codes before packing; the last row's scales are zero."""
    generator = torch.Generator().manual_seed(100 * bits + n)
    codes = torch.randint(0, 2**bits, (rows, blocks * n), dtype=torch.uint8, generator=generator)
    base = None
    if scale == "log8":
        scales = torch.randint(0, 256, (rows, blocks), dtype=torch.uint8, generator=generator)
        base = (10.0 ** torch.linspace(-30, 30, rows)).to(torch.bfloat16)
    else:
        scales = (torch.rand(rows, blocks, generator=generator) * 10.0 ** torch.linspace(-6, 4, rows)[:, None]).half()
    scales[0, 1], scales[-1] = 0, 0
    return codes, (pack_codes(codes, bits), scales, base)


def by_the_format(codes: torch.Tensor, stored: Stored, bits: int, n: int) -> np.ndarray:
    """Float64 (rows, padded): w = H c[code] * s / sqrt(n)."""
    _, scales, base = stored
    k = scales.double().numpy()
    if base is None:
        s = k / np.sqrt(n)
    else:
        s = np.where(k == 0, 0.0, base.double().numpy()[:, None] * 2 ** ((k - 255) / 32))
    c = tables(bits).centroids.astype(np.float64)[codes.numpy()].reshape(len(codes), -1, n)
    return (c @ sylvester(n) * (s / np.sqrt(n))[..., None]).reshape(len(codes), -1)


@pytest.mark.parametrize("scale", ["log8", "fp16"])
@pytest.mark.parametrize("n", BLOCK_SIZES)
@pytest.mark.parametrize("bits", BITS)
def test_decoded_values_are_those_of_the_format(bits: int, n: int, scale: str) -> None:
    codes, stored = random_stored(bits, n, scale)
    exact = by_the_format(codes, stored, bits, n)
    centroids = torch.from_numpy(tables(bits).centroids)
    compiled = decode_rows_numba(*stored, centroids, n, 3 * n)
    assert compiled.dtype == torch.float32
    blocks = exact.reshape(7, 3, n)
    room = 1e-6 * abs(blocks).max(axis=-1, keepdims=True) + 1e-44
    assert (abs(compiled.numpy().reshape(7, 3, n) - blocks) <= room).all()


@pytest.mark.parametrize("scale", ["log8", "fp16"])
@pytest.mark.parametrize("n", BLOCK_SIZES)
@pytest.mark.parametrize("bits", BITS)
def test_compiled_decoder_makes_the_values_of_the_reference(bits: int, n: int, scale: str) -> None:
    _, stored = random_stored(bits, n, scale)
    centroids = torch.from_numpy(tables(bits).centroids)
    for columns in (3 * n, 2 * n + 1):
        compiled = decode_rows_numba(*stored, centroids, n, columns)
        expected = decode_rows_reference(*stored, centroids, n, columns)
        assert compiled.shape == (7, columns)
        assert torch.equal(compiled.view(torch.int32), expected.view(torch.int32)), columns


@pytest.mark.parametrize("scale", ["log8", "fp16"])
@pytest.mark.parametrize("decode", [decode_rows_numba, decode_rows_reference])
def test_a_scale_of_zero_decodes_to_exact_zeros(decode, scale: str) -> None:  # type: ignore[no-untyped-def]
    _, stored = random_stored(5, 64, scale)
    decoded = decode(*stored, torch.from_numpy(tables(5).centroids), 64, 192)
    assert (decoded[-1] == 0).all()
    assert (decoded[0, 64:128] == 0).all()
    assert (decoded[0, :64] != 0).any()


def test_centroids_are_the_ones_given() -> None:
    _, stored = random_stored(3, 32, "fp16")
    own = torch.tensor([-4.0, -3.0, -2.0, -1.0, 1.0, 2.0, 3.0, 4.0])
    single = decode_rows_numba(*stored, own, 32, 96)
    assert torch.equal(decode_rows_numba(*stored, 2 * own, 32, 96), 2 * single)


def test_block_scales_are_shares_of_the_base_and_norms_over_root_n() -> None:
    k = torch.tensor([[0, 1, 223, 255]], dtype=torch.uint8)
    shares = block_scales(k, torch.tensor([3.0], dtype=torch.bfloat16), 64)
    np.testing.assert_allclose(shares[0], [0, 3 * 2 ** (-254 / 32), 1.5, 3], rtol=1e-7)
    norms = block_scales(torch.tensor([[0, 8.0]], dtype=torch.float16), None, 64)
    assert norms.tolist() == [[0.0, 1.0]]
