"""Schemes that can be meant, and what a coded weight costs."""

import pytest
import torch

from hlwq_cli.codec import BLOCK_SIZES, Scheme, encode
from hlwq_cli.errors import UsageError


def test_default_is_blocks_of_64_with_searched_log8_scales() -> None:
    assert Scheme(5) == Scheme(bits=5, block_size=64, scale="log8", search=True)


def test_classic_is_the_published_method() -> None:
    assert Scheme.classic(5) == Scheme(bits=5, block_size=128, scale="fp16", search=False)


@pytest.mark.parametrize("bits", [-5, 0, 1, 9, 16])
def test_bits_outside_2_to_8_are_refused(bits: int) -> None:
    with pytest.raises(UsageError, match=f"2 to 8 bits, not {bits}"):
        Scheme(bits)


@pytest.mark.parametrize("block_size", [0, 1, 16, 48, 512, -64])
def test_block_sizes_other_than_the_four_are_refused(block_size: int) -> None:
    with pytest.raises(UsageError, match=f"32, 64, 128, 256 weights, not {block_size}"):
        Scheme(5, block_size)


@pytest.mark.parametrize("scale", ["bf16", "LOG8", "", None])
def test_unknown_scales_are_refused(scale: str) -> None:
    with pytest.raises(UsageError, match=f"'log8' or 'fp16', not {scale!r}"):
        Scheme(5, scale=scale)  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", [{"bits": 5.0}, {"bits": 5, "block_size": 64.0}], ids=str)
def test_numbers_that_are_not_integers_are_refused(scheme: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Scheme(**scheme)  # type: ignore[arg-type]


@pytest.mark.parametrize(("columns", "padded"), [(1, 64), (64, 64), (65, 128), (704, 704), (4304, 4352)])
def test_columns_are_padded_to_whole_blocks(columns: int, padded: int) -> None:
    assert Scheme(5).padded(columns) == padded


@pytest.mark.parametrize("scale", ["log8", "fp16"])
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("columns", [1, 65, 256, 704])
def test_stored_bytes_are_those_of_the_scheme(columns: int, block_size: int, scale: str) -> None:
    for bits in range(2, 9):
        scheme = Scheme(bits, block_size, scale, search=False)  # type: ignore[arg-type]
        coded, _ = encode(torch.ones(2, 3, columns), scheme)
        parts = [t for t in (coded.codes, coded.scales, coded.base) if t is not None]
        stored = sum(t.numel() * t.element_size() for t in parts)
        assert coded.nbytes == stored == 6 * scheme.row_bytes(columns)
        assert coded.bits_per_weight == 8 * stored / (6 * columns)


@pytest.mark.parametrize(
    ("scheme", "columns", "row_bytes", "bits_per_weight"),
    [
        (Scheme(5), 2816, 1760 + 44 + 2, 5 + 1 / 8 + 16 / 2816),
        (Scheme(4), 704, 352 + 11 + 2, 4 + 1 / 8 + 16 / 704),
        (Scheme(5, 128), 2816, 1760 + 22 + 2, 5 + 1 / 16 + 16 / 2816),
        (Scheme.classic(5), 2816, 1760 + 44, 5 + 1 / 8),
        (Scheme(5, scale="fp16"), 2816, 1760 + 88, 5 + 1 / 4),
        (Scheme(3), 65, 48 + 2 + 2, 8 * 52 / 65),
    ],
    ids=str,
)
def test_bits_per_weight_count_codes_scales_base_and_padding(
    scheme: Scheme, columns: int, row_bytes: int, bits_per_weight: float
) -> None:
    assert scheme.row_bytes(columns) == row_bytes
    assert encode(torch.ones(2, columns), scheme)[0].bits_per_weight == pytest.approx(bits_per_weight, rel=1e-12)
