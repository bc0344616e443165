"""What coding costs: the table of docs/format.md, and that the cost told is the cost paid."""

from functools import lru_cache

import pytest
import torch

from hlwq_cli.codec import Scheme, SquaredError, decode, encode

# Relative squared error on iid Gaussian 2048 x 2048, as docs/format.md prints it: default, not searched, classic.
TABLE = {
    2: (0.1111, 0.1146, 0.1159),
    3: (0.02932, 0.03348, 0.03393),
    4: (0.006913, 0.009172, 0.009315),
    5: (0.001669, 0.002414, 0.002454),
    6: (4.12e-4, 6.21e-4, 6.30e-4),
    7: (1.04e-4, 1.58e-4, 1.60e-4),
    8: (2.64e-5, 3.98e-5, 4.03e-5),
}
BOUNDS = {3: 2.95e-2, 4: 6.95e-3, 5: 1.69e-3, 6: 4.2e-4}
CLASSIC_PUBLISHED = {2: 0.1159, 3: 0.03394, 4: 0.009317, 5: 0.002460, 6: 6.32e-4, 7: 1.64e-4, 8: 4.1e-5}


@lru_cache(maxsize=1)
def gaussian() -> torch.Tensor:
    return torch.randn(2048, 2048, generator=torch.Generator().manual_seed(2026))


@lru_cache(maxsize=None)
def relative_error(scheme: Scheme) -> float:
    return encode(gaussian(), scheme)[1].relative


@pytest.mark.parametrize(("bits", "bound"), BOUNDS.items())
def test_error_of_the_default_scheme_is_within_the_documented_limit(bits: int, bound: float) -> None:
    assert relative_error(Scheme(bits)) <= bound


def test_error_of_classic_five_bits_is_within_the_documented_limit() -> None:
    assert relative_error(Scheme.classic(5)) <= 2.51e-3


@pytest.mark.parametrize(("bits", "published"), CLASSIC_PUBLISHED.items())
def test_classic_has_the_error_of_the_published_method(bits: int, published: float) -> None:
    assert relative_error(Scheme.classic(bits)) == pytest.approx(published, rel=0.03)


@pytest.mark.parametrize(("bits", "row"), TABLE.items())
def test_errors_are_those_the_format_page_prints(bits: int, row: tuple[float, float, float]) -> None:
    schemes = Scheme(bits), Scheme(bits, search=False), Scheme.classic(bits)
    assert [relative_error(s) for s in schemes] == pytest.approx(row, rel=0.005)


def test_heavy_tails_cost_no_more_than_gaussian_weights() -> None:
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(512, 1024, generator=generator)
    student = normal / torch.randn(3, 512, 1024, generator=generator).square().mean(dim=0).sqrt()
    assert encode(student, Scheme(5))[1].relative < relative_error(Scheme(5))


@pytest.mark.parametrize("scale", ["log8", "fp16"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_reported_error_is_the_error_of_the_decoded_weight(bits: int, scale: str) -> None:
    weight = gaussian()[:64, :512] * torch.logspace(-3, 3, 64)[:, None]
    for search in (True, False):
        coded, cost = encode(weight, Scheme(bits, 64, scale, search))  # type: ignore[arg-type]
        difference = decode(coded).double() - weight.double()
        assert cost.error == pytest.approx(difference.square().sum().item(), rel=1e-4)
        assert cost.energy == pytest.approx(weight.double().square().sum().item(), rel=1e-5)


def test_reported_error_of_a_padded_weight_counts_its_padding() -> None:
    weight = gaussian()[:64, :100]
    coded, cost = encode(weight, Scheme(5))
    measured = (decode(coded).double() - weight.double()).square().sum().item()
    assert measured < cost.error < 1.5 * measured
    whole = Scheme(5).padded(100)
    padded = torch.nn.functional.pad(weight, (0, whole - 100))
    assert encode(padded, Scheme(5))[1] == SquaredError(cost.error, cost.energy)
