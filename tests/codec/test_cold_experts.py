"""Experts that few tokens or none reached during calibration are coded no worse than without calibration."""

import pytest
import torch

from hlwq_cli.codec import (
    Coded,
    Moments,
    Prior,
    Scheme,
    blend_experts,
    decode,
    encode_feedback,
    encode_rows,
    feedback_factor,
    shrink,
)

INPUTS, ROWS = 128, 24
SCHEME = Scheme(4)


def tokens(count: int, seed: int) -> torch.Tensor:
    """Inputs that all experts have in common, float64 (count, INPUTS): correlated, with channels of unlike size."""
    generator = torch.Generator().manual_seed(99)
    mixing = torch.randn(INPUTS, INPUTS, generator=generator, dtype=torch.float64) / INPUTS**0.5
    sizes = torch.exp(torch.randn(INPUTS, generator=generator, dtype=torch.float64))
    x = torch.randn(count, INPUTS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x @ mixing + 0.3 * x) * sizes


def loss(weight: torch.Tensor, decoded: torch.Tensor, h: torch.Tensor) -> float:
    d = weight.double() - decoded.double()
    return float(torch.einsum("ri,ij,rj->", d, h, d))


@pytest.mark.parametrize("prior", ["shared", "isotropic"])
@pytest.mark.parametrize("reached", [0, 1, 5, 40])
def test_a_cold_expert_is_no_worse_than_without_calibration(prior: Prior, reached: int) -> None:
    counts = [600, 900, reached]
    x = [tokens(count, seed) for seed, count in enumerate(counts)]
    if prior == "isotropic":  # what experts make themselves: alike in all channels, and of no use to others
        x = [torch.randn(n, INPUTS, generator=torch.Generator().manual_seed(n)).double() for n in counts]
    fresh = tokens(4000, 77) if prior == "shared" else torch.randn(4000, INPUTS, dtype=torch.float64)
    moments = Moments(torch.stack([rows.T @ rows for rows in x]), torch.tensor(counts, dtype=torch.float64))
    factor = feedback_factor(shrink(blend_experts(moments, prior)), SCHEME.block_size)
    weight = torch.randn(ROWS, INPUTS, generator=torch.Generator().manual_seed(5)) * 0.03
    ours = encode_feedback(weight, factor[2], SCHEME)
    plain = encode_rows(weight, SCHEME)
    decoded = [decode(Coded(c.codes, c.scales, c.base, (ROWS, INPUTS), SCHEME)) for c in (ours, plain)]
    h = fresh.T @ fresh
    found, expected = (loss(weight, d, h) for d in decoded)
    assert found <= (0.7 if prior == "shared" else 1.06) * expected
