"""Any module may hold codes for its matrices, in every layout: it answers as the model of the decoded weights."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t

from hlwq_cli.runtime.loading import execution
from hlwq_cli.runtime.modules import HLWQConv1D, HLWQExperts, HLWQModule, HLWQTiedLinear
from tests.support.files import read_tensors

from ..hand_coded import edit_tensors, random_model, save_coded
from ..loads import logits, tokens

TEXT = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
ENCODER = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
           "num_attention_heads": 2, "pad_token_id": 0}  # fmt: skip


def gpt2() -> Any:
    return random_model(t.GPT2LMHeadModel, t.GPT2Config(vocab_size=320, n_embd=64, n_layer=2, n_head=2, n_positions=32))


def gpt_oss() -> Any:
    config = t.GptOssConfig(**TEXT, num_local_experts=4, num_experts_per_tok=2)
    return random_model(t.GptOssForCausalLM, config)


def llama4() -> Any:
    settings = TEXT | {"intermediate_size_mlp": 64, "num_local_experts": 4, "num_experts_per_tok": 1}
    config = t.Llama4TextConfig(**settings, interleave_moe_layer_step=1, pad_token_id=0)
    return random_model(t.Llama4ForCausalLM, config)


def jetmoe() -> Any:
    settings = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    settings |= {"num_key_value_heads": 2, "kv_channels": 32, "num_local_experts": 4, "num_experts_per_tok": 2}
    config = t.JetMoeConfig(**settings)
    return random_model(t.JetMoeForCausalLM, config)


def qwen3_moe() -> Any:
    settings = TEXT | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    return random_model(t.Qwen3MoeForCausalLM, t.Qwen3MoeConfig(**settings))


TRANSPOSED = ("gpt2", "gpt_oss", "llama4")
MAKERS: dict[str, Callable[[], Any]] = {
    "gpt2": gpt2, "gpt_oss": gpt_oss, "llama4": llama4, "jetmoe": jetmoe, "qwen3_moe": qwen3_moe,
}  # fmt: skip


def to_code(name: str, model: Any) -> list[str]:
    """The names of a model's Conv1D weights or stacks of experts."""
    if name == "gpt2":
        return [n for n, p in model.named_parameters() if p.ndim == 2 and ".h." in n]
    return [n for n, p in model.named_parameters() if p.ndim == 3]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """The folder of a coded checkpoint, and the model of its decoded weights."""
    made: dict[str, tuple[Path, Any]] = {}

    def get(name: str) -> tuple[Path, Any]:
        if name not in made:
            folder, model = tmp_path_factory.mktemp(name), MAKERS[name]()
            names = to_code(name, model)
            made[name] = folder, save_coded(model, folder, names, names if name in TRANSPOSED else ())
        return made[name]

    return get


def load(folder: Path, like: Any, how: Any = "auto") -> Any:
    with execution(how):
        return type(like).from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("name", MAKERS)
def test_decoded_once_a_model_answers_bit_for_bit_as_its_decoded_twin(
    saved: Callable[[str], tuple[Path, Any]], name: str
) -> None:
    folder, twin = saved(name)
    assert torch.equal(logits(load(folder, twin), input_ids=tokens()), logits(twin, input_ids=tokens()))


@pytest.mark.parametrize("name", MAKERS)
def test_run_as_codes_a_model_answers_as_its_decoded_twin(saved: Callable[[str], tuple[Path, Any]], name: str) -> None:
    folder, twin = saved(name)
    model = load(folder, twin, "coded")
    kind = {"gpt2": HLWQConv1D, "qwen3_moe": HLWQExperts}.get(name, HLWQModule)
    held = [m for m in model.modules() if isinstance(m, HLWQModule)]
    assert held
    assert all(isinstance(m, kind) and isinstance(m, HLWQExperts) == (name == "qwen3_moe") for m in held)
    assert not any(buffer.startswith("dense") for m in held for buffer in m._buffers)
    expected = logits(twin, input_ids=tokens())
    torch.testing.assert_close(logits(model, input_ids=tokens()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", ["coded", "dense"])
@pytest.mark.parametrize("name", MAKERS)
def test_parameters_have_their_own_names_layouts_and_values(
    saved: Callable[[str], tuple[Path, Any]], name: str, how: Any
) -> None:
    folder, twin = saved(name)
    model = load(folder, twin, how)
    for full in to_code(name, twin):
        path, _, last = full.rpartition(".")
        assert torch.equal(getattr(model.get_submodule(path), last), twin.get_parameter(full))


@pytest.mark.parametrize("how", ["coded", "dense"])
@pytest.mark.parametrize("name", MAKERS)
def test_saved_again_every_tensor_has_the_same_bytes(
    saved: Callable[[str], tuple[Path, Any]], name: str, how: Any, tmp_path: Path
) -> None:
    folder, twin = saved(name)
    load(folder, twin, how).save_pretrained(tmp_path)
    before, after = read_tensors(folder), read_tensors(tmp_path)
    codes = {n for n in before if n.rpartition(".")[2].partition("_")[0] in ("codes", "scales", "base")}
    assert codes
    assert codes == {n for n in codes if after.get(n) == before[n]}
    again = load(tmp_path, twin)
    assert torch.equal(logits(again, input_ids=tokens()), logits(twin, input_ids=tokens()))


def test_after_decoding_no_codes_are_buffers_and_moving_leaves_them(
    saved: Callable[[str], tuple[Path, Any]],
) -> None:
    folder, twin = saved("gpt_oss")
    model = load(folder, twin)
    assert not [n for n, _ in model.named_buffers() if ".codes" in n]
    assert sum(p.nbytes for p in (*model.parameters(), *model.buffers())) == sum(
        p.nbytes for p in (*twin.parameters(), *twin.buffers())
    )
    stored = {n: v for n, v in model.state_dict().items() if ".codes" in n}
    assert {n: (v.shape, v.dtype) for n, v in stored.items()} == {
        n: (v.shape, v.dtype) for n, v in load(folder, twin, "coded").state_dict().items() if ".codes" in n
    }
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert all(torch.equal(half.state_dict()[n], v) for n, v in stored.items())
    assert half.model.layers[0].mlp.experts.down_proj.dtype == torch.bfloat16


@pytest.mark.parametrize("how", ["coded", "dense"])
def test_a_state_dict_loads_into_another_model_which_decodes_it(
    saved: Callable[[str], tuple[Path, Any]], how: Any, tmp_path: Path
) -> None:
    folder, twin = saved("gpt2")
    other = random_model(t.GPT2LMHeadModel, twin.config)
    names = to_code("gpt2", other)
    with torch.no_grad():
        other.get_parameter(names[0]).zero_()
    save_coded(other, tmp_path, names, names)
    model = load(tmp_path, twin, how)
    model.load_state_dict(load(folder, twin).state_dict())
    torch.testing.assert_close(
        logits(model, input_ids=tokens()), logits(twin, input_ids=tokens()), rtol=1e-4, atol=1e-4
    )


def test_layers_that_share_a_block_read_the_codes_that_the_file_holds_once(tmp_path: Path) -> None:
    config = t.Zamba2Config(
        vocab_size=320, hidden_size=64, intermediate_size=64, num_hidden_layers=6, num_attention_heads=2,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid", "mamba", "hybrid"], mamba_d_state=16, n_mamba_heads=4,
        mamba_headdim=32, mamba_ngroups=1, adapter_rank=8, num_mem_blocks=1, chunk_size=8, pad_token_id=0,
    )  # fmt: skip
    model = random_model(t.Zamba2ForCausalLM, config)
    tied = set(model.all_tied_weights_keys)
    names = [n for n, p in model.named_parameters() if n.endswith("down_proj.weight") and n not in tied]
    shared = [n for n in tied if n.endswith("down_proj.weight")]
    assert len(shared) == 2
    twin = save_coded(model, tmp_path, names)
    loaded = load(tmp_path, twin)
    assert torch.equal(logits(loaded, input_ids=tokens()), logits(twin, input_ids=tokens()))
    readers = [m for m in loaded.modules() if isinstance(m, HLWQTiedLinear)]
    assert len(readers) == 2
    loaded.tie_weights()
    loaded.save_pretrained(tmp_path / "again")
    assert sorted(read_tensors(tmp_path / "again")) == sorted(read_tensors(tmp_path))
    again = load(tmp_path / "again", twin, "coded")
    torch.testing.assert_close(
        logits(again, input_ids=tokens()), logits(twin, input_ids=tokens()), rtol=1e-4, atol=1e-4
    )


@pytest.fixture
def nan_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory is NaN, where torch would leave what was there."""
    usual = torch.empty_like

    def filled(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = usual(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() and not tensor.is_meta else tensor

    monkeypatch.setattr(torch, "empty_like", filled)


@pytest.mark.usefixtures("nan_memory")
@pytest.mark.parametrize("stores_head", [False, True])
@pytest.mark.parametrize(("name", "table"), [("Bert", "bert"), ("Roberta", "roberta"), ("Albert", "albert")])
def test_the_tied_bias_of_a_tied_head_is_filled(name: str, table: str, stores_head: bool, tmp_path: Path) -> None:
    settings = ENCODER | ({"embedding_size": 64} if name == "Albert" else {})
    model_class = getattr(t, f"{name}ForMaskedLM")
    embeddings = f"{table}.embeddings.word_embeddings.weight"
    twin = save_coded(random_model(model_class, getattr(t, f"{name}Config")(**settings)), tmp_path, [embeddings])
    head = next(n for n in twin.all_tied_weights_keys if n.endswith("decoder.weight"))
    if stores_head:
        value = twin.get_parameter(embeddings).detach().clone()
        edit_tensors(tmp_path, lambda tensors: tensors.update({head: value}))
    loaded = load(tmp_path, twin)
    bias = loaded.get_parameter(head.replace("weight", "bias"))
    assert torch.equal(bias, twin.get_parameter(head.replace("weight", "bias")))
    assert torch.equal(logits(loaded, input_ids=tokens()), logits(twin, input_ids=tokens()))
