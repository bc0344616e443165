"""hlwq generate: the answer of the library on stdout, in each form, and refusals before the work."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

from hlwq_cli.runtime import HLWQModel
from hlwq_cli.samples import resolve_model, sample_file

from .run_command import assert_refused, hlwq

SHORT = ("--max-new-tokens", "6", "--device", "cpu", "--dtype", "float32")
PROMPT = "The state of our union is"


@pytest.fixture(scope="module")
def model() -> HLWQModel:
    return HLWQModel.from_pretrained(resolve_model("sample"), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without images and without a chat template."""
    folder = tmp_path_factory.mktemp("blind")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=4096, **sizes)).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(sample_file("tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "red.png"
    Image.new("RGB", (48, 48), "red").save(path)
    return path


def test_the_answer_is_that_of_the_library(model: HLWQModel) -> None:
    ran = hlwq("generate", "sample", "-p", PROMPT, *SHORT)
    assert (ran.code, ran.out) == (0, f"{model.generate(PROMPT, max_new_tokens=6)}\n"), ran.err
    assert "tokens/s]" in ran.err


def test_stdin_is_a_prompt_and_a_seed_repeats_the_sampling(model: HLWQModel) -> None:
    ran = hlwq("generate", "sample", "-p", "-", "--temperature", "1.5", "--seed", "3", "-q", *SHORT, stdin=b"We\n")
    assert ran.out == f"{model.generate('We', max_new_tokens=6, temperature=1.5, seed=3)}\n"
    assert ran.err == ""


def test_json_holds_the_text_and_its_size_and_pictures_are_seen(model: HLWQModel, picture: Path) -> None:
    ran = hlwq("generate", "sample", "-p", "What is this?", "--image", picture, "--json", *SHORT)
    document = json.loads(ran.out)
    with Image.open(picture) as image:
        assert document["text"] == model.generate("What is this?", [image], max_new_tokens=6)
        asked = model.prepare(["What is this?"], [[image]])
    assert (document["schema"], document["command"]) == (1, "generate")
    assert document["prompt_tokens"] == asked["input_ids"].shape[1]
    assert 1 <= document["tokens"] <= 6


def test_a_missing_picture_is_not_found_and_a_text_is_no_picture(tmp_path: Path) -> None:
    assert_refused(hlwq("generate", "sample", "-p", "We", "--image", tmp_path / "no.png"), 3, "no.png")
    (tmp_path / "text.png").write_text("no picture")
    assert_refused(hlwq("generate", "sample", "-p", "We", "--image", tmp_path / "text.png"), 2, "text.png")


def test_a_picture_for_a_model_that_is_blind_is_refused(blind: Path, picture: Path) -> None:
    ran = hlwq("generate", blind, "-p", "We", "--image", picture, "-q", *SHORT)
    assert_refused(ran, 2, "does not support images")


@pytest.mark.parametrize(("prompt", "stdin"), [("", b""), ("-", b" \n"), ("-", b"caf\xe9")])
def test_a_prompt_that_is_empty_or_not_utf8_is_refused_before_the_model_is_read(prompt: str, stdin: bytes) -> None:
    assert_refused(hlwq("generate", "no/such-model", "-p", prompt, stdin=stdin), 2, "The prompt is")


def test_a_model_that_does_not_generate_is_refused(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=64, **sizes)).save_pretrained(tmp_path)
    ran = hlwq("generate", tmp_path, "-p", "We", "-q")
    assert_refused(ran, 1, "does not generate text")
