"""The encoder with error feedback on the CPU: the losses of its definition, and rows that do not depend on others."""

import numpy as np
import pytest
import torch

from hlwq_kernels import SCALE_STEPS, unpack_codes
from hlwq_kernels.encode import FeedbackFactor, FeedbackRows, encode_feedback, encode_feedback_reference
from hlwq_kernels.encode.feedback_numba import encode_feedback_numba
from tests.kernels.encode.feedback_cases import factor_of, spread_weights
from tests.kernels.weights import hostile_rows, sylvester, tables

ENCODERS = [encode_feedback_reference, encode_feedback_numba]


def rotated(weight: torch.Tensor, n: int) -> torch.Tensor:
    """Padded and rotated rows, float64 (..., padded)."""
    padded = torch.nn.functional.pad(weight.double(), (0, -weight.shape[-1] % n)).unflatten(-1, (-1, n))
    rows: torch.Tensor = (padded @ torch.from_numpy(sylvester(n)) / np.sqrt(n)).flatten(-2)
    return rows


def quantized(coded: FeedbackRows, bits: int, n: int) -> torch.Tensor:
    """What codes stand for in the rotated basis, float64 (..., padded)."""
    centroids = torch.from_numpy(tables(bits).centroids.astype(np.float64))
    scales = coded.base.double()[..., None] * torch.from_numpy(SCALE_STEPS.astype(np.float64))[coded.scales.int()]
    values = centroids[unpack_codes(coded.codes, bits).int()].unflatten(-1, (-1, n))
    rows: torch.Tensor = (values * scales[..., None]).flatten(-2)
    return rows


def moments_of(factor: FeedbackFactor) -> torch.Tensor:
    """H of a factor, float64."""
    inverse = torch.linalg.inv(factor.upper.double())
    return inverse * factor.cost.double()[..., None, :] @ inverse.mT


def quadratic(d: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    return ((d @ h) * d).sum(dim=-1)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(("bits", "n", "search"), [(2, 64, True), (4, 64, True), (5, 64, False), (8, 64, True)])
def test_the_squared_errors_weighted_by_cost_sum_to_the_loss(encoder: object, bits: int, n: int, search: bool) -> None:
    weight, factor = spread_weights(2, 40, 3 * n - 6), factor_of(2, 3 * n - 6, n)
    coded = encoder(weight, factor, tables(bits), n, search)  # type: ignore[operator]
    w, h = rotated(weight, n), moments_of(factor)
    d, energy = w - quantized(coded, bits, n), coded.energy
    for got, expected in [
        (coded.loss, quadratic(d, h)),
        (coded.loss_energy, quadratic(w, h)),
        (coded.error, d.square().sum(dim=-1)),
        (coded.energy, w.square().sum(dim=-1)),
    ]:
        torch.testing.assert_close(
            (got / energy).sum(), (expected / energy).sum(), rtol=1e-6 if bits < 8 else 4e-6, atol=0
        )


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("columns", [64, 192])
def test_the_compiled_search_loses_what_that_of_the_reference_loses(bits: int, columns: int) -> None:
    weight, factor = spread_weights(1, 600, columns), factor_of(1, columns, 64)
    expected, compiled = (encoder(weight, factor, tables(bits), 64, True) for encoder in ENCODERS)
    ratio = (compiled.loss / compiled.energy).sum() / (expected.loss / expected.energy).sum()
    assert abs(float(ratio) - 1) < 0.01


@pytest.mark.parametrize("bits", range(2, 9))
def test_with_one_scale_compiled_code_loses_what_the_reference_loses(bits: int) -> None:
    weight, factor = spread_weights(1, 2000, 128), factor_of(1, 128, 64)
    expected, compiled = (encoder(weight, factor, tables(bits), 64, False) for encoder in ENCODERS)
    assert (compiled.base == expected.base).double().mean() > 0.99, "rounded up from float32, or from float64"
    torch.testing.assert_close(compiled.base, expected.base, rtol=2**-7, atol=0)
    assert torch.equal(compiled.energy, expected.energy)
    difference = (compiled.scales[..., 0].int() - expected.scales[..., 0].int()).abs()
    assert difference.max() <= 1, "nothing has been spread to a first block: only the root mean square is rounded"
    assert difference.double().mean() < 0.01
    ratio = (compiled.loss / compiled.energy).sum() / (expected.loss / expected.energy).sum()
    assert abs(float(ratio) - 1) < 0.01


def test_rows_have_the_bytes_that_they_have_alone() -> None:
    weight, factor = spread_weights(1, 37, 192), factor_of(1, 192, 64)
    whole = encode_feedback(weight, factor, tables(4), 64)
    for rows in (slice(0, 5), slice(5, 6), slice(7, 37)):
        part = encode_feedback(weight[:, rows], factor, tables(4), 64)
        for name in ("codes", "scales", "base", "error", "energy", "loss"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[:, rows]), (name, rows)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_rows_that_cannot_be_coded_are_marked_and_zeros_stay_zeros(encoder: object) -> None:
    weight = hostile_rows(70)
    weight[0, 69], weight[4, 3] = torch.nan, 2.0**120
    coded = encoder(weight[None], factor_of(1, 70, 64), tables(4), 64, True)  # type: ignore[operator]
    assert coded.energy.isnan().nonzero().tolist() == [[0, 0], [0, 4]]
    zero = quantized(coded, 4, 64)[0, [2, 3, 5]]
    assert torch.equal(zero, torch.zeros_like(zero)), "zeros, negative zeros and denormal weights"
    fine = [i for i in range(weight.shape[0]) if i not in (0, 4)]
    assert coded.loss[0, fine].isfinite().all()
    assert (coded.loss[0, fine] <= coded.loss_energy[0, fine]).all()
