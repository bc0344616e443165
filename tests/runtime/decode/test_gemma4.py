"""Gemma 4's layers taken apart for a step: what transformers computes, and left alone where it is something else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hlwq_cli.runtime.decode import Decoder
from hlwq_cli.runtime.decode import step_layers as steps
from hlwq_cli.runtime.decode.families.gemma4 import step_layers
from hlwq_cli.runtime.decode.joined_weights import join_weights
from hlwq_cli.runtime.loading import load_model
from hlwq_cli.runtime.modules import HLWQLinear
from hlwq_cli.samples import resolve_model

Family = Callable[[str], Path]


def stepped_once(model: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Decoder, list[float]]:
    seen: list[float] = []
    own = steps.are_alike

    def noting(differences: list[torch.Tensor]) -> bool:
        seen.extend(float(d) for d in differences)
        return own(differences)

    monkeypatch.setattr("hlwq_cli.runtime.decode.runner.are_alike", noting)
    decoder = Decoder(model)
    ids = torch.randint(10, 200, (2, 20), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    decoder.prefill({"input_ids": ids, "attention_mask": mask}, 4)
    return decoder, seen


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("execution", ["coded", "dense"])
def test_every_layer_gives_what_transformers_gives(
    coded: Family, dtype: str, execution: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(str(coded("gemma4")), device="cpu", dtype=dtype, execution=execution)
    decoder, seen = stepped_once(model, monkeypatch)
    assert seen
    assert max(seen) == 0.0
    assert len(decoder.runner.layers) == len(seen)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_prompts_are_read_as_by_transformers(coded: Family, dtype: str) -> None:
    model = load_model(str(coded("gemma4")), device="cpu", dtype=dtype, execution="coded")
    ids = torch.randint(10, 200, (2, 20), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    plain, decoder = Decoder(model), Decoder(model)
    plain.runner.candidates, plain.runner.norms = [], []
    expected = plain.prefill({"input_ids": ids, "attention_mask": mask}, 4)
    for _ in range(2):
        found = decoder.prefill({"input_ids": ids, "attention_mask": mask}, 4)
        assert (found - expected).norm() <= 2 * torch.finfo(model.dtype).eps * expected.norm()
    assert decoder.runner.layers


def test_a_layer_that_computes_something_else_runs_as_transformers_has_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_model(resolve_model("sample"), device="cpu", dtype="float32")
    layer: Any = type(model.model.language_model.layers[0])
    own = layer.forward
    monkeypatch.setattr(layer, "forward", lambda self, *args, **kwargs: 1.1 * own(self, *args, **kwargs))
    decoder, seen = stepped_once(model, monkeypatch)
    assert min(seen) > 0.05
    assert decoder.runner.layers == []
    assert "which is slower" in caplog.text


def test_other_families_have_no_such_layers(coded: Family) -> None:
    assert step_layers(load_model(str(coded("llama")), device="cpu")) == []


def test_joined_layers_hold_parts_of_one_weight(coded: Family) -> None:
    model = load_model(str(coded("gemma4")), device="cpu", execution="coded")
    attention = model.model.language_model.layers[0].self_attn
    linears = [attention.q_proj, attention.k_proj, attention.v_proj]
    before = [m.weight.clone() for m in linears]
    whole = join_weights(linears)
    assert whole is not None
    assert len(whole.codes) == sum(len(w) for w in before)
    for m, weight in zip(linears, before, strict=True):
        assert isinstance(m, HLWQLinear)
        assert torch.equal(m.weight, weight)
        assert m.get_buffer("codes").untyped_storage().data_ptr() == whole.codes.untyped_storage().data_ptr()


def test_layers_of_unlike_widths_are_not_joined(coded: Family) -> None:
    model = load_model(str(coded("gemma4")), device="cpu", execution="coded")
    attention = model.model.language_model.layers[0].self_attn
    attention.k_proj.bits = 4
    assert join_weights([attention.q_proj, attention.k_proj]) is None
    assert join_weights([attention.q_proj, torch.nn.Linear(4, 4)]) is None
