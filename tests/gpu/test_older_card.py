"""Older GPUs, simulated by what they lack: Triton, like a T4, or every kernel.

The machine code of a T4 does not run here. Tests in tests/kernels compile it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from hlwq_cli.runtime.decode import Generation
from hlwq_cli.runtime.loading import load_model
from hlwq_cli.runtime.offload import ExpertBudget
from hlwq_kernels.common import device, supports_nvrtc, supports_triton
from tests.gpu.device import CUDA, needs_cuda
from tests.runtime.loads import logits, tokens

pytestmark = needs_cuda


@pytest.fixture(params=["no Triton", "no kernels"])
def older(request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "no Triton":
            patch.setattr(device, "_OLDEST_TRITON", (99, 0))
        else:
            patch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 0))
        supports_triton.cache_clear()
        supports_nvrtc.cache_clear()
        assert (supports_triton(CUDA), supports_nvrtc(CUDA)) == (False, request.param == "no Triton")
        yield request.param
    supports_triton.cache_clear()
    supports_nvrtc.cache_clear()


@pytest.mark.parametrize("budget", [None, ExpertBudget(3)])
def test_a_model_answers_as_on_the_cpu(coded_sample: str, older: str, budget: ExpertBudget | None) -> None:
    ids = tokens(1, 40)
    exact = load_model(coded_sample, device="cpu", dtype="float32")
    ours = load_model(coded_sample, device="cuda:0", dtype="float32", execution="coded", expert_budget=budget)
    options: dict[str, Any] = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = Generation(exact).generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    there = ids.to(CUDA)
    found = Generation(ours).generate(input_ids=there, attention_mask=torch.ones_like(there), **options)
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize(("dtype", "least"), [("float16", 1e-4), ("bfloat16", 1e-3)])
@pytest.mark.parametrize("budget", [None, ExpertBudget(3)])
def test_half_precision_is_near(
    coded_sample: str, older: str, dtype: str, least: float, budget: ExpertBudget | None
) -> None:
    ids = tokens(2, 300)
    exact = logits(load_model(coded_sample, device="cpu", dtype="float32"), input_ids=ids).log_softmax(-1)
    ours = load_model(coded_sample, device="cuda:0", dtype=dtype, execution="coded", expert_budget=budget)
    found = logits(ours, input_ids=ids.to(CUDA)).float().log_softmax(-1).cpu()
    divergence = (exact.exp() * (exact - found)).sum(-1)
    assert divergence.median() < least
