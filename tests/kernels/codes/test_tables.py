"""The constants that decide codes and scales."""

from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest

from hlwq_kernels import SCALE_STEPS
from hlwq_kernels.codes.tables import HALF_STEP, OCTAVE, SEARCH_FACTORS
from tests.kernels.weights import BITS, tables


def nearest_float32(exponent: Fraction) -> np.float32:
    """2^exponent, computed to 50 digits and rounded once."""
    with localcontext() as context:
        context.prec = 50
        exact = Decimal(2) ** (Decimal(exponent.numerator) / Decimal(exponent.denominator))
        guess = np.float32(exact)
        near = [np.nextafter(guess, np.float32(0)), guess, np.nextafter(guess, np.float32(np.inf))]
        return min(near, key=lambda x: abs(Decimal(float(x)) - exact))


def test_octave_holds_the_float32_nearest_to_each_power_of_two() -> None:
    assert OCTAVE.dtype == np.float32
    assert OCTAVE.tolist() == [nearest_float32(Fraction(j, 32)) for j in range(32)]
    assert nearest_float32(Fraction(1, 64)) == HALF_STEP


def test_scale_step_k_is_two_to_the_k_minus_255_over_32() -> None:
    assert SCALE_STEPS.dtype == np.float32
    assert SCALE_STEPS.tolist() == [0.0] + [nearest_float32(Fraction(k - 255, 32)) for k in range(1, 256)]


def test_scale_steps_reach_from_one_down_to_a_245th() -> None:
    assert SCALE_STEPS[255] == 1.0
    assert SCALE_STEPS[223] == 0.5
    assert 1 / 246 < SCALE_STEPS[1] < 1 / 245


def test_neighbouring_scale_steps_differ_by_a_32nd_octave() -> None:
    ratios = SCALE_STEPS[2:].astype(np.float64) / SCALE_STEPS[1:-1]
    np.testing.assert_allclose(ratios, 2 ** (1 / 32), rtol=2e-7)
    assert (SCALE_STEPS[33:] == 2 * SCALE_STEPS[1:-32]).all(), "32 steps are exactly one octave"


def test_search_factors_are_the_29_steps_from_minus_16_to_12() -> None:
    assert SEARCH_FACTORS.dtype == np.float32
    assert SEARCH_FACTORS.tolist() == [nearest_float32(Fraction(j, 32)) for j in range(-16, 13)]


@pytest.mark.parametrize("bits", BITS)
def test_boundaries_are_midpoints_and_the_last_is_infinite(bits: int) -> None:
    table = tables(bits)
    c = table.centroids.astype(np.float64)
    assert table.bits == bits
    assert table.boundaries.dtype == np.float32
    assert table.boundaries[:-1].tolist() == ((c[1:] + c[:-1]) / 2).astype(np.float32).tolist()
    assert table.boundaries[-1] == np.inf


@pytest.mark.parametrize("bits", BITS)
def test_no_cell_of_the_lookup_holds_two_boundaries(bits: int) -> None:
    table = tables(bits)
    cells = np.floor(table.boundaries[:-1] * np.float64(table.cells_per_unit))
    assert len(set(cells.tolist())) == len(cells)
    assert abs(cells).max() < table.cells, "every boundary lies within the table"
    assert table.cell_codes[0] == 0
    assert table.cell_codes[-1] == 2**bits - 1


@pytest.mark.parametrize("bits", BITS)
def test_inverse_of_the_outermost_centroid_is_rounded_once(bits: int) -> None:
    table = tables(bits)
    assert table.inverse_outermost == np.float32(1 / np.float64(table.centroids[-1]))
