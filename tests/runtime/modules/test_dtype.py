"""A model that is given another dtype after loading: its codes stay what they are."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hlwq_cli.checkpoint import load_recipe, quantize
from hlwq_cli.runtime.loading import load_model
from hlwq_cli.runtime.modules import PARAMETERS, CodedMatrix, HLWQExperts
from hlwq_cli.runtime.modules.format import CodedModule


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What is decoded of each coded parameter."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, HLWQExperts):
            found |= {f"{name}.{p}": module.decoded(p) for p in PARAMETERS}
        elif isinstance(module, CodedMatrix):
            found[name] = module.decoded()
    return found


@pytest.mark.parametrize("recipe", ["head", "classic"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_parts_keep_their_types_and_decoded_weights_get_the_new_one(
    family: Callable[[str], Path], recipe: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    quantize(str(family("gemma4")), tmp_path / "coded", load_recipe(recipe))
    model, exact = (
        load_model(str(tmp_path / "coded"), device="cpu", dtype=d, execution="coded") for d in ("bfloat16", "float32")
    )
    before = {n: b.clone() for n, b in model.named_buffers() if b.dtype in (torch.uint8, torch.bfloat16, torch.float16)}
    assert any(n.endswith(".base") or ".base_" in n for n in before) == (recipe == "head")
    model.to(dtype)
    after = dict(model.named_buffers())
    coded = {n: b for n, b in before.items() if n.split(".")[-1].split("_")[0] in ("codes", "scales", "base")}
    assert len(coded) > 20
    assert all(after[n].dtype == b.dtype and torch.equal(after[n], b) for n, b in coded.items())
    assert {m.compute_dtype for m in model.modules() if isinstance(m, CodedModule)} == {dtype}
    found, expected = weights(model), weights(exact)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], expected[n].to(dtype)) for n in expected)
