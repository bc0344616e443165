"""`hlwq bench` of every kind of model: what can be measured is, the rest is a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hlwq_cli.checkpoint import load_recipe, quantize
from tests.runtime import kinds

from ..run_command import CommandResult, assert_refused, hlwq, hlwq_process

TEXT = ("--data", "sample", "--windows", "1")


def coded(make: Callable[[Path], Path], folder: Path) -> Path:
    quantize(str(make(folder / "source")), folder / "coded", load_recipe())
    return folder / "coded"


def bert(folder: Path) -> Path:
    import transformers as t

    return kinds.save(t.BertForMaskedLM(t.BertConfig(**kinds.ENCODER)), folder)


def protocol(ran: CommandResult) -> str:
    assert ran.code == 0, ran.err
    return ran.out.splitlines()[0]


@pytest.mark.parametrize("measure", ["--ppl", "--kld"])
def test_perplexity_of_an_encoder_decoder_is_refused_before_any_work(measure: str, tmp_path: Path) -> None:
    source = kinds.t5(tmp_path)
    ran = hlwq("bench", source, "--ref", source, measure, *TEXT)
    assert_refused(ran, 2, f"{source} is an encoder-decoder, and perplexity needs a causal model.", "--cosine")


def test_speed_and_weight_error_of_an_encoder_decoder_are_measured(tmp_path: Path) -> None:
    folder = coded(kinds.bart, tmp_path)
    ran = hlwq("bench", folder, "--ref", tmp_path / "source", "--speed", "--cosine", "--device", "cpu", "--json")
    assert ran.code == 0, ran.err
    (measured,) = json.loads(ran.out)["report"]["measured"]
    assert measured["similarity"]
    assert (measured["speed"]["prompt_tokens"], measured["speed"]["new_tokens"]) == (63, 55)
    assert measured["speed"]["decode"]["mean"] > 1


@pytest.mark.parametrize("measure", ["--ppl", "--speed"])
def test_an_encoder_is_refused_where_the_model_must_run(measure: str, tmp_path: Path) -> None:
    source = bert(tmp_path)
    ran = hlwq("bench", source, measure, *TEXT)
    assert_refused(ran, 1, "is a masked language model (BertForMaskedLM), which does not generate text.")


def test_the_weight_error_of_an_encoder_is_measured(tmp_path: Path) -> None:
    ran = hlwq("bench", coded(bert, tmp_path), "--ref", tmp_path / "source", "--cosine", "--json")
    assert ran.code == 0, ran.err
    (measured,) = json.loads(ran.out)["report"]["measured"]
    assert all(0.99 < tensor["cosine"] < 1 for tensor in measured["similarity"])


@pytest.mark.parametrize("measure", ["--ppl", "--kld", "--speed"])
def test_a_model_that_needs_an_image_is_refused_before_any_work(measure: str, tmp_path: Path) -> None:
    source = kinds.blip(tmp_path)
    ran = hlwq("bench", source, "--ref", source, measure, *TEXT)
    assert_refused(
        ran,
        2,
        f"{source} (BlipForConditionalGeneration) needs pixel_values with every text, and only text is measured.",
    )


def test_the_weight_error_of_a_model_that_needs_an_image_is_measured(tmp_path: Path) -> None:
    ran = hlwq("bench", coded(kinds.blip, tmp_path), "--ref", tmp_path / "source", "--cosine", "--json")
    assert ran.code == 0, ran.err
    (measured,) = json.loads(ran.out)["report"]["measured"]
    assert all(0.99 < tensor["cosine"] < 1 for tensor in measured["similarity"])


@pytest.mark.parametrize("measure", ["--ppl", "--kld"])
def test_a_model_that_fails_on_text_alone_ends_in_a_sentence(measure: str, tmp_path: Path) -> None:
    source = kinds.idefics(tmp_path)
    ran = hlwq("bench", source, "--ref", source, measure, *TEXT, "--window", "32")
    says = "IdeficsForVisionText2Text does not run on text alone: Exactly 1 of pixel_values"
    assert ran.code == 1
    assert f"Error: {says}" in ran.err


@pytest.mark.parametrize("make", [kinds.whisper_decoder, kinds.prophetnet_decoder])
def test_speed_stays_within_positions_of_other_names(make: Callable[[Path], Path], tmp_path: Path) -> None:
    ran = hlwq("bench", make(tmp_path), "--speed", "--device", "cpu")
    assert ran.code == 0, ran.err
    assert "cut to the context: a prompt of 63 tokens, and 55 decoded." in ran.out


@pytest.mark.parametrize(("make", "context"), [(kinds.gpt2, 64), (kinds.roberta_decoder, 65), (kinds.llama, 128)])
def test_default_windows_are_cut_to_the_context(make: Callable[[Path], Path], context: int, tmp_path: Path) -> None:
    line = protocol(hlwq("bench", make(tmp_path), "--ppl", *TEXT))
    assert f"1 windows of {context} (cut to the context of {context}), {context - 1} scored in each" in line


def test_windows_are_cut_to_the_shortest_context(tmp_path: Path) -> None:
    short, long = kinds.gpt2(tmp_path / "short"), kinds.llama(tmp_path / "long")
    assert "1 windows of 64 (cut to the context of 64)" in protocol(hlwq("bench", long, short, "--ppl", *TEXT))


def test_a_given_window_that_fits_says_nothing_of_the_context(tmp_path: Path) -> None:
    assert "1 windows of 64, 63 scored" in protocol(
        hlwq("bench", kinds.gpt2(tmp_path), "--ppl", *TEXT, "--window", "64")
    )


def test_a_given_window_past_a_table_of_positions_is_refused(tmp_path: Path) -> None:
    source = kinds.gpt2(tmp_path)
    ran = hlwq("bench", source, "--ppl", *TEXT, "--window", "65")
    assert_refused(ran, 2, f"A window of 65 tokens is longer than the context of {source}, which is 64.")


def test_a_given_window_past_rotary_positions_is_measured_and_said(tmp_path: Path) -> None:
    line = protocol(hlwq("bench", kinds.llama(tmp_path), "--ppl", *TEXT, "--window", "256"))
    assert "1 windows of 256 (past the context of 128), 255 scored" in line


def test_speed_stays_within_a_table_of_positions_and_says_so(tmp_path: Path) -> None:
    ran = hlwq("bench", kinds.gpt2(tmp_path), "--speed", "--device", "cpu")
    assert ran.code == 0, ran.err
    assert "cut to the context: a prompt of 63 tokens, and 55 decoded." in ran.out


def test_a_model_that_sees_is_measured_with_its_tokenizer_alone(tmp_path: Path) -> None:
    assert "1 windows of 64, 63 scored" in protocol(
        hlwq("bench", kinds.vision(tmp_path), "--ppl", *TEXT, "--window", "64")
    )


def test_custom_code_is_refused_without_a_question(tmp_path: Path) -> None:
    source = kinds.llama(tmp_path)
    config = json.loads((source / "config.json").read_text())
    auto_map = {"AutoConfig": "code.MyConfig", "AutoModelForCausalLM": "code.MyModel"}
    config |= {"model_type": "my_llm", "architectures": ["MyModel"], "auto_map": auto_map}
    (source / "config.json").write_text(json.dumps(config))
    ran = hlwq_process("bench", source, "--ppl", *TEXT)
    assert_refused(ran, 1, "needs custom code, and hlwq never runs a checkpoint's own code.")
