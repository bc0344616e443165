"""The Lloyd-Max codebooks, against a computation that shares nothing with theirs."""

import hashlib
from itertools import pairwise

import numpy as np
import pytest

from hlwq_cli.codec import lloyd_max

ALL_BITS = range(1, 9)
FAR = 11.0  # P(|Z| > 11) is 4e-28
NODES, WEIGHTS = np.polynomial.legendre.leggauss(100)

# Distortion of the converged codebooks on N(0, 1), to the digits printed in the literature (J. Max 1960, and facts.md).
DISTORTION = {2: 0.11748, 3: 0.034548, 4: 0.0095010, 5: 0.0025047, 6: 0.00064424, 8: 0.000041185}

FIVE_BITS_POSITIVE_HALF = [
    0.065890, 0.198052, 0.331378, 0.466700, 0.604934, 0.747136, 0.894565, 1.048783,
    1.211804, 1.386340, 1.576228, 1.787233, 2.028728, 2.317739, 2.691120, 3.260732,
]  # fmt: skip

# sha256 of the float32 centroids, little-endian.
GOLDEN = {
    1: "004202da8d65c159e36af3dd31b2bbcba1864f45f66f88af9053fdd178ed69a2",
    2: "6c5d865914121f63d23f9c2c9830f822284302d1bb4025e134ba3b75b03da562",
    3: "77e11f5820649d05f2b184d2f155f9b1da5264cf2f0936f465ece0a8a56c6216",
    4: "c33086d9c316b1b70be014a1c2d0bf96dc54090c69eb4ede8db8b3efb8d0c7ab",
    5: "16851bdc66b791c385a140c6b746cd7d0ed34a1ad52f05e6ce7209ebd7284af9",
    6: "b75352a8e0edee8fbdeb5d869aa1166ccd21a7e21153b7d5e03cd330382267b9",
    7: "e941d6e6952c9c733eae6d18186201664e78d52ce6d7c1cae49d6cdd1d138757",
    8: "6df0d73ad7970e1127d67117cb02d1959f273a65cef26674e8538555b4f03ad5",
}


def integral(low: np.ndarray, high: np.ndarray, power: int, about: np.ndarray | float = 0.0) -> np.ndarray:
    """Of (x - about)^power times the normal density over each cell, by Gauss-Legendre of degree 199."""
    half = (high - low)[:, None] / 2
    x = low[:, None] + half * (NODES + 1)
    values = (x - np.reshape(about, (-1, 1))) ** power * np.exp(-x * x / 2) / np.sqrt(2 * np.pi)
    return (values * half) @ WEIGHTS


def cells(c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    middles = (c[1:] + c[:-1]) / 2
    return np.append(-FAR, middles), np.append(middles, FAR)


def mean(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return integral(low, high, 1) / integral(low, high, 0)


def newton_step(c: np.ndarray) -> np.ndarray:
    """What is missing to a codebook whose centroids are the means of their cells; slopes by differences."""
    (low, high), h = cells(c), 1e-5
    by_low = (mean(low + h, high) - mean(low - h, high)) / (2 * h)
    by_high = (mean(low, high + h) - mean(low, high - h)) / (2 * h)
    by_low[0] = by_high[-1] = 0  # the outer edges do not move
    slopes = np.diag(by_low + by_high) / 2 + np.diag(by_low[1:], -1) / 2 + np.diag(by_high[:-1], 1) / 2
    return np.linalg.solve(np.eye(len(c)) - slopes, mean(low, high) - c)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_codebook_is_converged_to_a_billionth(bits: int) -> None:
    c = np.array(lloyd_max(bits))
    assert c.shape == (2**bits,)
    np.testing.assert_allclose(mean(*cells(c)), c, atol=1e-12, err_msg="a centroid is the mean of its cell")
    assert abs(newton_step(c)).max() < 1e-9, "the distance to the solution"


@pytest.mark.parametrize("bits", ALL_BITS)
def test_codebook_is_symmetric_and_ascends(bits: int) -> None:
    c = lloyd_max(bits)
    assert [-x for x in reversed(c)] == list(c)
    assert all(a < b for a, b in pairwise(c))


@pytest.mark.parametrize(("bits", "distortion"), DISTORTION.items())
def test_distortion_matches_the_published_values(bits: int, distortion: float) -> None:
    c = np.array(lloyd_max(bits))
    assert integral(*cells(c), 2, about=c).sum() == pytest.approx(distortion, rel=5e-5)


def test_one_bit_is_the_mean_of_the_half_normal() -> None:
    assert lloyd_max(1)[1] == pytest.approx(np.sqrt(2 / np.pi), abs=1e-12)


def test_five_bit_codebook_is_the_table_of_the_format_page() -> None:
    assert lloyd_max(5)[16:] == pytest.approx(FIVE_BITS_POSITIVE_HALF, abs=5.1e-7)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_float32_centroids_are_those_of_every_other_machine(bits: int) -> None:
    assert hashlib.sha256(np.array(lloyd_max(bits), dtype="<f4").tobytes()).hexdigest() == GOLDEN[bits]


@pytest.mark.parametrize("bits", ALL_BITS)
def test_no_centroid_is_so_near_a_rounding_boundary_that_a_platform_could_change_it(bits: int) -> None:
    c = np.array(lloyd_max(bits))
    assert (c.astype(np.float32) == (c * (1 + 1e-13)).astype(np.float32)).all()
    assert (c.astype(np.float32) == (c * (1 - 1e-13)).astype(np.float32)).all()


@pytest.mark.parametrize("bits", [0, 9, -1])
def test_other_widths_have_no_codebook(bits: int) -> None:
    with pytest.raises(ValueError, match="1 to 8 bits"):
        lloyd_max(bits)
