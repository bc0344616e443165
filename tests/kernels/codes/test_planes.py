"""How codes lie in bytes."""

import struct

import pytest
import torch

from hlwq_kernels import pack_codes, plane_widths, unpack_codes
from tests.kernels.weights import BITS

PLANES = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (4, 4)}

NIBBLES = "1032547698badcfe" * 4
WORKED = {
    2: "e4" * 16,
    3: "e4" * 16 + "0000ffff" * 2,
    4: NIBBLES,
    5: NIBBLES + "00ff" * 4,
    6: NIBBLES + "00" * 4 + "55" * 4 + "aa" * 4 + "ff" * 4,
    7: NIBBLES + "00" * 4 + "55" * 4 + "aa" * 4 + "ff" * 4 + "00" * 8,
    8: NIBBLES + "00" * 8 + "11" * 8 + "22" * 8 + "33" * 8,
}


def random_codes(bits: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, 2**bits, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))


def words(data: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(data) // 4}I", data))


def read_codes(data: bytes, bits: int) -> list[int]:
    """A reader written from docs/format.md alone."""
    count = len(data) * 8 // bits
    codes, start, shift = [0] * count, 0, 0
    for width in PLANES[bits]:
        size = count * width // 8
        for number, word in enumerate(words(data[start : start + size])):
            here = range(number * (32 // width), (number + 1) * (32 // width))
            for half, indices in enumerate(([i for i in here if not i & 4], [i for i in here if i & 4])):
                for place, i in enumerate(indices):
                    field = word >> (16 * half + place * width) & (2**width - 1)
                    codes[i] |= field << shift
        start, shift = start + size, shift + width
    return codes


@pytest.mark.parametrize("bits", BITS)
def test_planes_are_of_4_2_and_1_bits_low_bits_first(bits: int) -> None:
    assert plane_widths(bits) == PLANES[bits]


@pytest.mark.parametrize("bits", BITS)
def test_the_worked_example_of_the_format_holds(bits: int) -> None:
    codes = torch.arange(64, dtype=torch.int64) % 2**bits
    assert pack_codes(codes.to(torch.uint8), bits).numpy().tobytes().hex() == WORKED[bits]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(32,), (64,), (96,), (3, 256), (2, 3, 320)])
def test_unpacking_returns_the_packed_codes(bits: int, shape: tuple[int, ...]) -> None:
    codes = random_codes(bits, *shape)
    packed = pack_codes(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (*shape[:-1], shape[-1] * bits // 8)
    assert torch.equal(unpack_codes(packed, bits), codes)


@pytest.mark.parametrize("bits", BITS)
def test_no_rows_are_packed_to_no_rows(bits: int) -> None:
    packed = pack_codes(torch.zeros(0, 64, dtype=torch.uint8), bits)
    assert packed.shape == (0, 8 * bits)
    assert unpack_codes(packed, bits).shape == (0, 64)


@pytest.mark.parametrize("bits", BITS)
def test_a_reader_written_from_the_format_alone_gets_the_codes(bits: int) -> None:
    codes = random_codes(bits, 352)
    assert read_codes(pack_codes(codes, bits).numpy().tobytes(), bits) == codes.tolist()


@pytest.mark.parametrize("bits", BITS)
def test_rows_are_packed_alone(bits: int) -> None:
    codes = random_codes(bits, 2, 3, 64)
    packed = pack_codes(codes, bits)
    assert torch.equal(packed[1, 2], pack_codes(codes[1, 2], bits))


@pytest.mark.parametrize("bits", BITS)
def test_codes_four_apart_lie_16_bits_apart_in_one_word_of_every_plane(bits: int) -> None:
    top = 2**bits - 1
    for i in (i for i in range(64) if not i & 4):
        low, high = torch.zeros(2, 64, dtype=torch.uint8)
        low[i], high[i + 4] = top, top
        low_words, high_words = (words(pack_codes(x, bits).numpy().tobytes()) for x in (low, high))
        assert high_words == [word << 16 for word in low_words]
        assert sum(word != 0 for word in low_words) == len(PLANES[bits])
