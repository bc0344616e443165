"""`hlwq bench`: figures on stdout, all else on stderr, and exit codes that a CI job can hold to."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hlwq_cli.checkpoint import load_recipe, quantize
from hlwq_cli.errors import CorruptError
from hlwq_cli.runtime.loading import load_model
from hlwq_cli.samples import resolve_model
from tests.builders import LLAMA
from tests.files import write_header
from tests.hub_server import HubServer

from .run import Ran, assert_refused, environment, hlwq, hlwq_process

TEXT = ("--data", "sample", "--window", "64", "--windows", "2")


@pytest.fixture(scope="module")
def coded_sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "sample-coded"
    quantize(resolve_model("sample"), folder, load_recipe())
    return folder


def document(ran: Ran) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ran.out)
    return found


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def test_perplexity_of_the_sample_is_one_document() -> None:
    ran = hlwq("bench", "sample", "--ppl", *TEXT, "--json")
    assert ran.code == 0, ran.err
    found = document(ran)
    assert (found["schema"], found["command"], found["gates_missed"]) == (1, "bench", [])
    (measured,) = found["report"]["measured"]
    assert measured["path"] == "sample"
    assert measured["perplexity"]["tokens"] == 126
    assert 1 < measured["perplexity"]["value"] < 200
    assert found["report"]["protocol"]["bos"] is True


def test_people_get_the_protocol_and_a_table() -> None:
    ran = hlwq("bench", "sample", "--ppl", *TEXT)
    assert ran.code == 0, ran.err
    first, header = ran.out.splitlines()[:2]
    assert first.startswith("protocol paper: sample/addresses")
    assert "2 windows of 64, 63 scored in each" in first
    assert header.startswith("| model | weights |")


def test_all_measures_a_missed_gate_and_a_chart(coded_sample: Path, tmp_path: Path) -> None:
    ran = hlwq(
        "bench", coded_sample, "--ref", "sample", "--kld", "--cosine", *TEXT, "--json", "--chart",
        tmp_path / "out.png", "--max-kld", "0", "--min-top1", "0", "--max-ppl-delta", "-9",
    )  # fmt: skip
    assert ran.code == 6, ran.err
    found = document(ran)
    assert len(found["gates_missed"]) == 2
    assert "KL divergence" in " ".join(found["gates_missed"])
    (measured,) = found["report"]["measured"]
    assert measured["divergence"]["positions"] == 126
    assert 0 < measured["divergence"]["mean"] < 1
    assert measured["similarity"]
    for name in ("out.png", "out-dark.png"):
        width, height = png_size(tmp_path / name)
        assert (width, height) > (600, 300)


def test_keys_and_values_in_codes_are_measured_against_the_same_model_without(coded_sample: Path) -> None:
    ran = hlwq(
        "bench", coded_sample, "--ref", coded_sample, "--kld", "--kv-bits", "4,2",
        "--data", "sample", "--window", "256", "--windows", "1", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    found = document(ran)["report"]
    (measured,) = found["measured"]
    assert found["reference"]["kv_cache"] is None
    assert measured["kv_cache"]["bits"] == "4,2"
    assert measured["kv_cache"]["token_bytes"] < measured["kv_cache"]["dense_token_bytes"] / 4.8
    assert 0 < measured["divergence"]["mean"] < 0.2
    assert found["reference"]["perplexity"]["value"] != measured["perplexity"]["value"]


def test_people_read_the_width_of_keys_and_values_and_what_a_token_takes() -> None:
    ran = hlwq("bench", "sample", "--ppl", *TEXT, "--kv-bits", "4")
    assert ran.code == 0, ran.err
    assert "| KV bits |" in ran.out
    assert "keys and values of 2 layers in codes of 4 bits: 260 bytes a token for 1024, 3.94 times smaller" in ran.out


@pytest.mark.parametrize("bits", ["1", "9", "4,3,2", "four"])
def test_a_width_of_keys_and_values_that_cannot_be_is_refused(bits: str) -> None:
    assert_refused(hlwq("bench", "sample", "--ppl", *TEXT, "--kv-bits", bits), 2, bits, "from 2 to 8")


def test_a_width_of_keys_and_values_that_changes_nothing_is_refused() -> None:
    assert_refused(hlwq("bench", "sample", "--ref", "sample", "--cosine", "--kv-bits", "4"), 2, "--kv-bits")


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (("--speed", "--gpu-memory", "much"), "'much' is not a size."),
        (("--speed", "--gpu-memory", "8.6GB", "--device", "cpu"), "no GPU here"),
        (("--ref", "sample", "--cosine", "--gpu-memory", "8.6GB"), "--gpu-memory changes nothing"),
    ],
)
def test_gpu_memory_that_cannot_be_meant_is_refused(asked: tuple[str, ...], sentence: str) -> None:
    assert_refused(hlwq("bench", "sample", *asked), 2, sentence)


def test_a_model_that_keeps_nothing_of_the_past_is_refused(coded: Callable[[str], Path]) -> None:
    ran = hlwq("bench", coded("gemma3"), "--speed", "--kv-bits", "4")
    assert (ran.code, ran.out) == (1, "")
    assert "None of this model's layers keeps all tokens" in ran.err


@pytest.mark.parametrize("measure", ["--ppl", "--cosine"])
def test_quiet_is_one_figure(coded_sample: Path, measure: str) -> None:
    ran = hlwq("bench", coded_sample, "--ref", "sample", measure, *TEXT, "-q")
    assert (ran.code, ran.err, ran.out.count("\n")) == (0, "", 1)
    assert float(ran.out) > 0


def test_quiet_is_nothing_beside_a_figure_whatever_libraries_would_show(coded_sample: Path) -> None:
    env = environment()
    del env["HF_HUB_DISABLE_PROGRESS_BARS"]
    ran = hlwq_process("bench", coded_sample, "--ref", "sample", "--ppl", "--cosine", *TEXT, "-q", env=env)
    assert (ran.code, ran.err, ran.out.count("\n")) == (0, "", 1)
    assert float(ran.out) > 0


def test_a_pipe_gets_lines_and_no_bars(coded_sample: Path) -> None:
    env = environment()
    del env["HF_HUB_DISABLE_PROGRESS_BARS"]
    ran = hlwq_process("bench", coded_sample, "--ref", "sample", "--ppl", *TEXT, env=env)
    assert ran.code == 0
    assert "%|" not in ran.err
    assert ran.err.splitlines()[0] == "loading sample ..."
    assert "| sample | 14.58 MB | not coded |" in ran.out


def test_nothing_asked_for_is_refused() -> None:
    assert_refused(hlwq("bench", "sample"), 2, "Nothing was asked for")


@pytest.mark.parametrize("measure", ["--kld", "--cosine"])
def test_a_comparison_without_a_reference_is_refused(measure: str) -> None:
    assert_refused(hlwq("bench", "sample", measure), 2, "--ref")


@pytest.mark.parametrize("gate", ["--max-kld", "--min-top1", "--max-ppl-delta"])
def test_a_limit_on_what_is_not_measured_is_refused(gate: str) -> None:
    ran = hlwq("bench", "sample", "--ppl", gate, "0.5")
    assert ran.code == 2
    assert ran.out == ""
    assert gate in ran.err


def test_a_missing_folder_is_not_found(tmp_path: Path) -> None:
    assert_refused(hlwq("bench", tmp_path / "nothing", "--ppl", *TEXT), 3, "nothing")


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("sample", "nothing"), 3, "There is no folder nothing."),
        (("sample", "--ref", "nothing"), 3, "There is no folder nothing."),
        (("sample", "--device", "blah"), 2, "'blah' is no device"),
        (("sample", "--device", "cuda:99"), 2, "cuda:99 is not there"),
        (("sample", "--device", "cpu,cpu"), 2, "onto one device, not cpu,cpu"),
        (("sample", "--dtype", "int8"), 2, "--dtype int8 is no type to load into."),
        (("sample", "--chart", "out.jpg"), 2, "--chart draws a PNG"),
        (("sample", "--chart", "nowhere/out.png"), 3, "There is no folder nowhere for out.png."),
    ],
)
def test_what_cannot_be_meant_is_said_before_any_work(
    args: tuple[str, ...], code: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hlwq_cli.measure.report.load_text", None)  # not even the text is looked for
    assert_refused(hlwq("bench", *args, "--ppl"), code, says)


def test_a_text_shorter_than_a_window_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Too short.")
    ran = hlwq("bench", "sample", "--ppl", "--data", tmp_path / "short.txt")
    assert_refused(ran, 2, "short.txt has ", "less than a window of 2048.")


@pytest.mark.parametrize("window", ["-1", "0", "3"])
def test_a_window_that_measures_nothing_is_refused(window: str) -> None:
    assert_refused(hlwq("bench", "sample", "--ppl", "--data", "sample", "--window", window), 2, f"A window of {window}")


@pytest.mark.parametrize(("option", "value"), [("--execution", "fast"), ("--protocol", "gpt2"), ("--dtype", "int8")])
def test_an_unknown_choice_is_refused(option: str, value: str) -> None:
    ran = hlwq("bench", "sample", "--ppl", *TEXT, option, value)
    assert ran.code in (1, 2)
    assert value in ran.err
    assert "Unexpected" not in ran.err


def test_where_wikitext_cannot_be_reached_the_bundled_text_is_used_and_said(hub: HubServer) -> None:
    hub.fail("wikitext", 0)  # drops the connection
    ran = hlwq("bench", "sample", "--ppl", "--window", "64", "--windows", "1", "--json")
    assert hub.requests
    assert ran.code == 0, ran.err
    assert document(ran)["report"]["protocol"]["text"] == "sample/addresses"
    assert "wikitext-2-raw cannot be reached" in ran.err


def test_a_plain_checkpoint_where_a_coded_one_is_needed_is_said_with_its_code() -> None:
    ran = hlwq("bench", "sample", "--ref", "sample", "--cosine")
    assert (ran.code, ran.out) == (3, "")
    assert "is not an HLWQ checkpoint" in ran.err


def test_a_checkpoint_without_a_tokenizer_is_said(coded_sample: Path, copied: Callable[[Path], Path]) -> None:
    folder = copied(coded_sample)
    for file in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        (folder / file).unlink()
    assert_refused(
        hlwq("bench", folder, "--ppl", *TEXT), 3, "has no usable tokenizer.", "Copy its tokenizer files there."
    )


def test_a_folder_that_is_no_model_is_said_and_not_blamed_on_the_hub(
    coded_sample: Path, copied: Callable[[Path], Path]
) -> None:
    folder = copied(coded_sample)
    (folder / "model.safetensors").rename(folder / "model.bin.bak")
    with pytest.raises(CorruptError, match=r"cannot be read: .*model\.safetensors"):
        load_model(str(folder))
    (folder / "config.json").unlink()
    assert_refused(hlwq("bench", folder, "--ppl", *TEXT), 1, "has no config.json of a model that transformers knows.")


@pytest.mark.parametrize("turned", [False, True])
def test_a_reference_of_another_vocabulary_is_refused(
    coded: Callable[[str], Path], turned: bool, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(coded("llama"), tmp_path / "other"))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(resolve_model("sample")) / file, other)
    first, ref = ("sample", str(other)) if turned else (str(other), "sample")
    ran = hlwq("bench", first, "--ref", ref, "--kld", *TEXT)
    assert (ran.code, ran.out) == (2, ""), ran.err
    assert f"{first} has a vocabulary of" in ran.err
    assert "320" in ran.err
    assert "4096" in ran.err


def big_llama(folder: Path, width: int) -> Path:
    """A llama whose MLP has `width` hidden units, all of them holes in a sparse file."""
    shapes = {f"model.layers.0.mlp.{n}_proj.weight": (width, 64) for n in ("gate", "up")}
    shapes |= {"model.layers.0.mlp.down_proj.weight": (64, width), "model.norm.weight": (64,)}
    shapes |= {f"model.layers.0.self_attn.{n}_proj.weight": (64, 64) for n in "qkvo"}
    shapes |= {f"model.layers.0.{n}_layernorm.weight": (64,) for n in ("input", "post_attention")}
    shapes |= dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (4096, 64))
    header, at = {}, 0
    for name, shape in shapes.items():
        end = at + 4 * math.prod(shape)
        header[name], at = {"dtype": "F32", "shape": shape, "data_offsets": [at, end]}, end
    folder.mkdir()
    path = write_header(folder / "model.safetensors", header)
    os.truncate(path, path.stat().st_size + at)
    text = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    config = LLAMA | text | {"vocab_size": 4096, "intermediate_size": width, "head_dim": 64, "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_when_memory_runs_out_what_was_measured_before_is_reported(tmp_path: Path) -> None:
    big = big_llama(tmp_path / "big", 30_000_000)  # 23 GB, which 20 GB of address space cannot hold

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (20 * 10**9, 20 * 10**9))

    ran = hlwq_process("bench", "sample", big, "--ppl", *TEXT, "--json", preexec_fn=limit)
    assert ran.code == 1
    found = document(ran)["report"]
    assert [m["path"] for m in found["measured"]] == ["sample"]
    assert found["measured"][0]["perplexity"]["tokens"] == 126
    assert "there is not enough memory" in found["failed"]
    assert "Error: Stopped early: there is not enough memory" in ran.err
    assert "Unexpected" not in ran.err


def test_speed_is_that_of_each_model_and_says_how_it_decoded(coded: Callable[[str], Path]) -> None:
    folder = str(coded("llama"))
    ran = hlwq("bench", folder, "--ref", folder, "--speed", "--device", "cpu", "--json")
    assert ran.code == 0, ran.err
    report = document(ran)["report"]
    for found in (report["reference"], *report["measured"]):
        speed = found["speed"]
        assert (speed["decoding"], speed["not_captured"], speed["device_peak"]) == ("transformers", "", 0)
        assert speed["prefill"]["runs"] == speed["decode"]["runs"] == 5
        assert speed["decode"]["mean"] > 1
        assert 10**8 < speed["host_peak"] < 10**10
        assert found["load_seconds"] > 0
