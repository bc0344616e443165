"""A norm is fused where one kernel computes what it does, for the time of a step, and otherwise left alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as t
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.gemma4.modeling_gemma4 import Gemma4RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from hlwq_cli.runtime.decode.fused_norms import fused_norms, fusible_norms

from ..loads import load

NORMS = [lambda: LlamaRMSNorm(96), lambda: Gemma4RMSNorm(96, 1e-6), lambda: Gemma4RMSNorm(96, 1e-6, with_scale=False)]


def weighted(norm: nn.Module, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    for parameter in norm.parameters():
        parameter.data.normal_()
    return norm.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", NORMS)
def test_a_fused_norm_gives_what_the_norm_gives(make: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    norm = weighted(make(), dtype)
    x = (torch.randn(3, 5, 96) * 7).to(dtype)
    expected = norm(x)
    norms = fusible_norms(nn.Sequential(norm))
    assert norms == [norm]
    with fused_norms(norms):
        found = norm(x)
    rounding = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected, rtol=rounding, atol=rounding)
    assert "forward" not in vars(norm)


def test_another_norm_is_left_alone() -> None:
    layer = nn.LayerNorm(96)
    assert fusible_norms(nn.ModuleList([weighted(Gemma3RMSNorm(96), torch.float32), layer, nn.RMSNorm(96)])) == []


def test_what_had_a_forward_of_its_own_has_it_again() -> None:
    norm = LlamaRMSNorm(8)
    own = norm.__dict__["forward"] = lambda x: x
    with fused_norms([norm]):
        assert norm.forward is not own
    assert norm.forward is own


@pytest.mark.parametrize(("name", "layers", "each"), [("llama", 2, 2), ("qwen3_moe", 2, 4), ("gemma4", 3, 11)])
def test_every_norm_of_a_family_is_found(coded: Callable[[str], Path], name: str, layers: int, each: int) -> None:
    model = load(coded(name), "coded")
    assert isinstance(model, t.PreTrainedModel)
    text = model.model.language_model if name == "gemma4" else model.model
    assert len(fusible_norms(text)) == layers * each + 1
