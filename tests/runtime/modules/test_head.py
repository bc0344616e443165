"""Checkpoints whose embeddings and head are coded: tied ones once, untied ones each, in every way they are loaded."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from hlwq_cli.checkpoint import export, load_recipe, open_coded, open_source, quantize
from hlwq_cli.checkpoint.format import verify
from hlwq_cli.errors import CorruptError, UnsupportedError
from hlwq_cli.measure.similarity import similarity
from hlwq_cli.runtime.decode import Decoder, Generation
from hlwq_cli.runtime.loading import load_model
from hlwq_cli.runtime.modules import HLWQEmbedding, HLWQLinear, HLWQTiedLinear
from tests.support.builders import LLAMA_MODEL, TEXT, dense, gemma4_small, save_tensors
from tests.support.files import edit_json, read_json, read_tensors

from ..loading.test_families import picture_inputs
from ..loads import auto_class, load, logits, tokens

Family = Callable[[str], Path]
EXECUTIONS = ("coded", "dense")
TIED = {"qwen3", "gemma3", "gemma4"}


@pytest.fixture(scope="module")
def headed(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A family's checkpoint, quantized with its embeddings and head."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("headed") / name
            quantize(str(family(name)), made[name], load_recipe("head"), max_shard_bytes=150_000)
        return made[name]

    return get


@pytest.fixture(scope="module")
def plain(headed: Family, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """A family's model, loaded from its decoded weights in float32."""
    made: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in made:
            made[name] = load_plain(headed(name), tmp_path_factory.mktemp("plain") / name)
        return made[name]

    return get


def load_plain(folder: Path, out: Path) -> Any:
    export(folder, out, "f32")
    return auto_class(out).from_pretrained(out, dtype=torch.float32).eval()


def coded_names(folder: Path) -> dict[str, int]:
    return {t.name: t.bits for t in open_coded(folder).manifest.coded if t.role in ("embedding", "head")}


def test_tied_ones_are_coded_once_under_the_embeddings_name(headed: Family, family_name: str) -> None:
    names = coded_names(headed(family_name))
    assert sum(n.endswith("embed_tokens") for n in names) == 1
    assert ("lm_head" in names) == (family_name not in TIED)
    assert set(names.values()) == {8}
    settings = read_json(headed(family_name) / "config.json")["quantization_config"]
    assert "lm_head" not in settings["modules_to_not_convert"]


@pytest.mark.parametrize("how", EXECUTIONS)
def test_logits_equal_those_of_the_decoded_weights(
    headed: Family, plain: Callable[[str], Any], family_name: str, how: Any
) -> None:
    model, ids = load(headed(family_name), how), tokens()
    assert isinstance(model.get_input_embeddings(), HLWQEmbedding)
    assert type(model.lm_head) is (HLWQTiedLinear if family_name in TIED else HLWQLinear)
    expected = logits(plain(family_name), input_ids=ids)
    torch.testing.assert_close(logits(model, input_ids=ids), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", EXECUTIONS)
@pytest.mark.parametrize("name", ["gemma3", "gemma4"])
def test_logits_with_a_picture_equal_those_of_the_decoded_weights(
    headed: Family, plain: Callable[[str], Any], name: str, how: Any
) -> None:
    model = load(headed(name), how)
    inputs = picture_inputs(name, model)
    expected = logits(plain(name), **inputs)
    torch.testing.assert_close(logits(model, **inputs), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", EXECUTIONS)
def test_saved_again_every_tensor_has_the_same_bytes(
    headed: Family, family_name: str, how: Any, tmp_path: Path
) -> None:
    load(headed(family_name), how, "auto").save_pretrained(tmp_path)
    before, after = read_tensors(headed(family_name)), read_tensors(tmp_path)
    assert sorted(after) == sorted(before)
    assert {n for n in before if before[n] != after[n]} == set()
    expected = logits(load(headed(family_name)), input_ids=tokens())
    assert torch.equal(logits(load_model(str(tmp_path), dtype="float32"), input_ids=tokens()), expected)


@pytest.mark.parametrize("how", EXECUTIONS)
def test_steps_on_a_static_cache_give_the_tokens_of_transformers(headed: Family, family_name: str, how: Any) -> None:
    model, ids = load(headed(family_name), how), tokens()
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    expected = model.generate(ids, pad_token_id=0, **options)
    generation = Generation(model)
    generation.decoder = Decoder(model)
    assert torch.equal(generation.generate(input_ids=ids, pad_token_id=0, **options), expected)


def test_they_are_verified_and_compared_as_any_coded_tensor(headed: Family, family: Family) -> None:
    checkpoint, source = open_coded(headed("llama")), open_source(str(family("llama")))
    assert verify(checkpoint).problems == ()
    found = {t.name: t for t in similarity(checkpoint, source)}
    for name in ("model.embed_tokens", "lm_head"):
        assert (found[name].bits, found[name].sick) == (8, False)
        assert found[name].error == pytest.approx(2.7e-5, rel=0.1)
    checkpoint.close()
    source.close()


def test_the_card_says_what_was_coded(headed: Family) -> None:
    assert "its linear layers and embeddings in packed" in (headed("llama") / "README.md").read_text()
    assert "its linear layers, experts and embeddings in packed" in (headed("gemma4") / "README.md").read_text()


@pytest.mark.parametrize("option", [("embed_tokens=6",), ("lm_head=6",)])
def test_either_alone_of_an_untied_pair(family: Family, tmp_path: Path, option: tuple[str]) -> None:
    quantize(str(family("llama")), tmp_path / "out", load_recipe(tensor=option))
    model = load(tmp_path / "out", "coded")
    expected = logits(load_plain(tmp_path / "out", tmp_path / "plain"), input_ids=tokens())
    torch.testing.assert_close(logits(model, input_ids=tokens()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")  # transformers tells that the two differ
@pytest.mark.parametrize("options", [{"name": "head"}, {"tensor": ("embed_tokens=6",)}, {"tensor": ("lm_head=6",)}])
def test_a_head_that_differs_stays_itself_whatever_the_config_says(tmp_path: Path, options: dict[str, Any]) -> None:
    config = LLAMA_MODEL | TEXT | {"vocab_size": 40, "num_hidden_layers": 0, "dtype": "bfloat16"}
    tensors = dense(0) | {"model.norm.weight": torch.ones(128).bfloat16()}
    source = save_tensors(tmp_path / "m", tensors, config | {"tie_word_embeddings": True})
    quantize(str(source), tmp_path / "out", load_recipe(**options))
    export(tmp_path / "out", tmp_path / "plain", "f32")
    edit_json(tmp_path / "plain" / "config.json", tie_word_embeddings=False)
    ids = torch.arange(40)[None]
    expected = logits(
        auto_class(tmp_path / "plain").from_pretrained(tmp_path / "plain", dtype=torch.float32), input_ids=ids
    )
    torch.testing.assert_close(logits(load(tmp_path / "out", "coded"), input_ids=ids), expected, rtol=1e-4, atol=1e-4)


def test_embeddings_stored_under_the_name_of_their_head_are_kept_and_load(tmp_path: Path) -> None:
    import transformers as t

    sizes = {"num_hidden_layers": 1, "intermediate_size": 192, "tie_word_embeddings": True}
    config = t.LlamaConfig(**(TEXT | {"vocab_size": 40} | sizes))
    t.LlamaForCausalLM(config).bfloat16().save_pretrained(tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    quantize(str(tmp_path / "m"), tmp_path / "out", load_recipe("head"))
    kept = {k.name: k.reason for k in open_coded(tmp_path / "out").manifest.kept}
    assert kept["lm_head.weight"] == "the tied embeddings are stored under its name"
    assert torch.equal(load(tmp_path / "out").get_input_embeddings().weight, tensors["lm_head.weight"].float())


@pytest.mark.parametrize("how", EXECUTIONS)
def test_tables_that_layers_look_up_are_coded_too(tmp_path: Path, how: Any) -> None:
    import transformers as t

    settings = {k: v for k, v in gemma4_small().items() if k not in ("model_type", "architectures")}
    settings["text_config"] |= {"enable_moe_block": False, "hidden_size_per_layer_input": 64}
    torch.manual_seed(0)
    model = t.Gemma4ForConditionalGeneration(t.Gemma4Config(**settings))
    model.save_pretrained(tmp_path / "m")
    quantize(str(tmp_path / "m"), tmp_path / "out", load_recipe("head"))
    assert sum(n.endswith("embed_tokens_per_layer") for n in coded_names(tmp_path / "out")) == 1
    model = load(tmp_path / "out", how)
    inputs = picture_inputs("gemma4", model)
    expected = logits(load_plain(tmp_path / "out", tmp_path / "plain"), **inputs)
    torch.testing.assert_close(logits(model, **inputs), expected, rtol=1e-4, atol=1e-4)


def test_a_model_that_no_architecture_file_names_runs_with_coded_embeddings_and_exact_positions(tmp_path: Path) -> None:
    import transformers as t

    torch.manual_seed(0)
    model = t.OPTForCausalLM(
        t.OPTConfig(
            vocab_size=320,
            hidden_size=128,
            word_embed_proj_dim=128,
            ffn_dim=192,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=64,
        )
    )
    model.save_pretrained(tmp_path / "m")
    quantize(str(tmp_path / "m"), tmp_path / "out", load_recipe("head"))
    assert list(coded_names(tmp_path / "out")) == ["model.decoder.embed_tokens"]
    expected = logits(load_plain(tmp_path / "out", tmp_path / "plain"), input_ids=tokens())
    torch.testing.assert_close(logits(load(tmp_path / "out"), input_ids=tokens()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_coded_embeddings_cannot_be_resized_and_say_so(headed: Family, name: str) -> None:
    model = load(headed(name))
    with pytest.raises(UnsupportedError, match="320 token embeddings are coded and cannot be resized"):
        model.resize_token_embeddings(330)
    with pytest.raises(UnsupportedError, match="cannot be resized"):
        model.resize_token_embeddings(320, pad_to_multiple_of=256)
    assert model.resize_token_embeddings(320, pad_to_multiple_of=64) is model.get_input_embeddings()
    assert model.resize_token_embeddings() is model.get_input_embeddings()


@pytest.mark.parametrize("name", ["qwen3", "gemma4"])
def test_tying_again_and_copies_leave_a_model_as_it_was(headed: Family, name: str) -> None:
    model = load(headed(name), "coded")
    expected = logits(model, input_ids=tokens())
    model.tie_weights()
    twin = copy.deepcopy(model)
    model.get_input_embeddings().codes.zero_()
    assert torch.equal(logits(twin, input_ids=tokens()), expected)
    assert not torch.equal(logits(model, input_ids=tokens()), expected)


def test_missing_codes_of_tied_embeddings_are_named(headed: Family, copied: Callable[[Path], Path]) -> None:
    from safetensors.torch import load_file, save_file

    folder, name = copied(headed("qwen3")), "model.embed_tokens.scales"
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        if tensors.pop(name, None) is not None:
            save_file(tensors, file, {"format": "pt"})
    for loaded_by in (load_model, auto_class(folder).from_pretrained):
        with pytest.raises(CorruptError, match=f"missing: {name}"):
            loaded_by(str(folder))


def test_the_body_alone_loads_without_its_head(headed: Family, family_name: str) -> None:
    folder, ids = headed(family_name), tokens()
    base = AutoModel.from_pretrained(folder, dtype=torch.float32)
    whole = load(folder)
    with torch.no_grad():
        assert torch.equal(base(ids).last_hidden_state, whole.model(ids).last_hidden_state)


@pytest.mark.parametrize("name", ["qwen3", "gemma4"])
def test_an_automatic_device_map_gives_the_same_logits(headed: Family, name: str) -> None:
    folder, ids = headed(name), tokens()
    mapped = auto_class(folder).from_pretrained(folder, dtype=torch.float32, device_map="auto")
    assert torch.equal(logits(mapped, input_ids=ids), logits(load(folder), input_ids=ids))


def test_a_tied_embedding_that_is_no_head_is_refused(tmp_path: Path) -> None:
    import transformers as t

    from hlwq_cli.codec import lloyd_max
    from hlwq_cli.runtime.loading import replace_modules
    from hlwq_cli.runtime.modules import QuantFormat
    from hlwq_cli.runtime.modules.tying import tie_coded, untie_coded

    with torch.device("meta"):
        model = t.T5ForConditionalGeneration(t.T5Config(vocab_size=64, d_model=64, d_ff=64, num_layers=1, d_kv=16))
    readers = untie_coded(model, {"shared.weight"}, ())
    replace_modules(model, {"shared.codes": (64, 40)}, QuantFormat(64, "log8", {5: tuple(lloyd_max(5))}))
    with pytest.raises(UnsupportedError, match="tied to coded embeddings, but is not a linear layer"):
        tie_coded(model, readers)
