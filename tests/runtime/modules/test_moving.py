"""A model that is moved after loading: its codes keep their bytes, and what it computes with is where it is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t

from hlwq_cli.checkpoint import load_recipe, quantize
from hlwq_cli.runtime.modules.format import CodedModule

from ..hand_coded import random_model, save_coded
from ..loads import load, logits, tokens

META = torch.device("meta")


@pytest.fixture(scope="module", params=["gemma4", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Coded matrices, embeddings, a tied head and experts with scales of two parts; and coded parameters of Conv1D."""
    coded = tmp_path_factory.mktemp(request.param) / "coded"
    if request.param == "gemma4":
        family: Callable[[str], Path] = request.getfixturevalue("family")
        quantize(str(family("gemma4")), coded, load_recipe("head"))
        return coded
    sizes = {"vocab_size": 320, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 32}
    config = t.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)
    model = random_model(t.GPT2LMHeadModel, config)
    names = [n for n, p in model.named_parameters() if p.ndim == 2 and ".h." in n]
    coded.mkdir()
    save_coded(model, coded, names, names)
    return coded


def kinds(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def held(model: Any) -> dict[str, torch.Tensor]:
    """Parameters and buffers, those that are tied once for each name."""
    parameters = model.named_parameters(remove_duplicate=False)
    return dict(parameters) | dict(model.named_buffers(remove_duplicate=False))


def stored(model: Any) -> dict[str, torch.Tensor]:
    """The stored tensors of coded parameters, as a saved model would have them."""
    names = {f"{path}.{n}" for path, m in model.named_modules() if isinstance(m, CodedModule) for n in m.part_names}
    return {name: tensor for name, tensor in model.state_dict().items() if name in names}


@pytest.mark.parametrize("how", ["coded", "dense"])
def test_a_moved_model_holds_the_same_tensors_in_the_same_types_there(folder: Path, how: Any) -> None:
    model = load(folder, how)
    before, saved = kinds(held(model)), kinds(model.state_dict())
    assert len(stored(model)) > 8
    model.to(META)
    assert kinds(held(model)) == before
    assert {tensor.device for tensor in held(model).values()} == {META}
    assert kinds(model.state_dict()) == saved


def test_decoded_once_a_moved_model_takes_its_weights_along_and_leaves_its_codes(folder: Path) -> None:
    model = load(folder)
    before = {name: tensor.clone() for name, tensor in stored(model).items()}
    model.to(META)
    after = stored(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert {tensor.device for tensor in held(model).values()} == {META}


@pytest.mark.parametrize("how", ["coded", "dense"])
def test_another_dtype_leaves_the_bytes_of_the_codes(folder: Path, how: Any) -> None:
    model = load(folder, how, torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in stored(model).items()}
    model.to(torch.float32)
    after = stored(model)
    assert all(after[n].dtype == tensor.dtype and torch.equal(after[n], tensor) for n, tensor in before.items())
    assert logits(model, input_ids=tokens()).dtype == torch.float32


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
@pytest.mark.parametrize("only", ["", "codes"])
def test_a_state_dict_leaves_a_moved_model_where_it_is(folder: Path, only: str) -> None:
    model = load(folder)
    state = {n: v.clone() for n, v in stored(model).items() if only in n.rpartition(".")[2]}
    state = {n: v ^ 1 if v.dtype == torch.uint8 else v for n, v in state.items()}
    model.to(META).load_state_dict(state, strict=False)
    assert {tensor.device for tensor in held(model).values()} == {META}
    assert all(torch.equal(stored(model)[name], tensor) for name, tensor in state.items())


def test_a_state_dict_is_decoded_into_the_same_memory_which_graphs_read(folder: Path) -> None:
    model, other = load(folder), load(folder)
    before = {n: b.data_ptr() for n, b in model.named_buffers() if "dense_" in n}
    assert before
    state = {n: v ^ 1 if v.dtype == torch.uint8 else v for n, v in other.state_dict().items()}
    expected = logits(model, input_ids=tokens())
    model.load_state_dict(state)
    assert {n: b.data_ptr() for n, b in model.named_buffers() if "dense_" in n} == before
    assert not torch.equal(logits(model, input_ids=tokens()), expected)
    model.load_state_dict(other.state_dict())
    assert torch.equal(logits(model, input_ids=tokens()), expected)
