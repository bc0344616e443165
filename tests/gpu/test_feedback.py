"""The CUDA encoder with error feedback: the loss of the CPU, the same bytes each time, and losses that are true."""

import pytest
import torch

from hlwq_cli.codec import (
    FeedbackRows,
    Moments,
    Scheme,
    blend_experts,
    encode_feedback,
    encode_rows,
    feedback_factor,
    shrink,
)
from hlwq_kernels import decode_rows
from tests.gpu.device import CUDA, needs_cuda
from tests.kernels.encode.feedback_cases import factor_of, spread_weights

pytestmark = needs_cuda


def moments(experts: int, tokens: int, columns: int) -> Moments:
    generator = torch.Generator(CUDA).manual_seed(columns)
    common = torch.randn(experts, tokens, columns // 8, device=CUDA, generator=generator)
    mixing = torch.randn(experts, columns // 8, columns, device=CUDA, generator=generator)
    x = common @ mixing + torch.randn(experts, tokens, columns, device=CUDA, generator=generator)
    x *= torch.exp(torch.randn(experts, 1, columns, device=CUDA, generator=generator))
    return Moments(x.mT @ x, torch.full((experts,), float(tokens)))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_loss_is_that_of_the_cpu(bits: int, dtype: torch.dtype) -> None:
    weight, factor = spread_weights(3, 100, 330).to(dtype), factor_of(3, 330, 64)
    on_cpu = encode_feedback(weight, factor, Scheme(bits))
    coded = encode_feedback(weight.to(CUDA), factor.to(CUDA, torch.float32), Scheme(bits))
    assert torch.equal(coded.base.cpu(), on_cpu.base)
    assert torch.equal(coded.energy.cpu(), on_cpu.energy)
    for name in ("loss", "error", "loss_energy"):
        ratio = (getattr(coded, name).cpu() / on_cpu.energy).sum() / (getattr(on_cpu, name) / on_cpu.energy).sum()
        assert abs(float(ratio) - 1) < 0.01, (name, float(ratio))


@pytest.mark.parametrize("block_size", [32, 64, 128])
def test_the_loss_is_that_of_the_decoded_weight(block_size: int) -> None:
    scheme = Scheme(4, block_size)
    shrunk = shrink(moments(2, 900, 256))
    h = shrunk.h.double()
    weight = torch.randn(2, 50, 256, device=CUDA)
    coded = encode_feedback(weight, feedback_factor(shrunk, block_size), scheme)
    centroids = torch.from_numpy(scheme.tables.centroids).to(CUDA)
    for e in range(2):
        decoded = decode_rows(coded.codes[e], coded.scales[e], coded.base[e], centroids, block_size, 256)
        d, w = (weight[e] - decoded).double(), weight[e].double()
        torch.testing.assert_close(coded.loss[e].sum(), ((d @ h[e]) * d).sum(), rtol=1e-4, atol=0)
        torch.testing.assert_close(coded.loss_energy[e].sum(), ((w @ h[e]) * w).sum(), rtol=1e-4, atol=0)


def test_factors_are_those_of_float64() -> None:
    made = moments(3, 100, 704)
    exact = feedback_factor(shrink(Moments(made.h.double().cpu(), made.count)), 64)
    factor = feedback_factor(shrink(made), 64)
    torch.testing.assert_close(factor.upper.double().cpu(), exact.upper.double(), rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(factor.cost.double().cpu(), exact.cost.double(), rtol=1e-3, atol=0)


def test_the_same_call_makes_the_same_bytes_and_feedback_pays() -> None:
    weight, scheme = torch.randn(16, 256, 704, device=CUDA).to(torch.bfloat16), Scheme(4)
    made = moments(16, 300, 704)
    made.h[3], made.count[3] = 0, 0
    blended = blend_experts(made, "isotropic")
    again = Moments(blended.h.clone(), blended.count)
    h = shrink(Moments(blended.h.clone(), blended.count)).h
    first, second = (encode_feedback(weight, feedback_factor(shrink(m), 64), scheme) for m in (blended, again))
    for name, x, y in zip(FeedbackRows._fields, first, second, strict=True):
        assert torch.equal(x, y), name
    centroids = torch.from_numpy(scheme.tables.centroids).to(CUDA)
    for e in (0, 3):
        plain = encode_rows(weight[e], scheme)
        d = weight[e].float() - decode_rows(plain.codes, plain.scales, plain.base, centroids, 64, 704)
        assert first.loss[e].sum() <= 1.002 * ((d @ h[e]) * d).sum()
