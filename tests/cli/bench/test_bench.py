"""`hlwq bench`: figures on stdout, everything else on stderr, and exit codes for CI jobs."""

from __future__ import annotations

import json
import math
import os
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.builders import LLAMA_MODEL
from tests.support.files import write_header
from tests.support.hub_server import HubServer

from ..run_command import CommandResult, hlwq, hlwq_process

TEXT = ("--data", "sample", "--window", "64", "--windows", "2")


def document(ran: CommandResult) -> dict[str, Any]:
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


def test_human_output_has_the_protocol_and_a_table() -> None:
    ran = hlwq("bench", "sample", "--ppl", *TEXT)
    assert ran.code == 0, ran.err
    first, header = ran.out.splitlines()[:2]
    assert first.startswith("protocol paper: sample/addresses")
    assert "2 windows of 64, 63 scored in each" in first
    assert header.startswith("| model | weights |")


def test_all_measures_a_missed_gate_and_a_chart(coded_sample: str, tmp_path: Path) -> None:
    ran = hlwq(
        "bench",
        coded_sample,
        "--ref",
        "sample",
        "--kld",
        "--cosine",
        *TEXT,
        "--json",
        "--chart",
        tmp_path / "out.png",
        "--max-kld",
        "0",
        "--min-top1",
        "0",
        "--max-ppl-delta",
        "-9",
    )
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


def test_quantized_kv_is_measured_against_the_same_model_without_it(coded_sample: str) -> None:
    ran = hlwq(
        "bench",
        coded_sample,
        "--ref",
        coded_sample,
        "--kld",
        "--kv-bits",
        "4,2",
        "--data",
        "sample",
        "--window",
        "256",
        "--windows",
        "1",
        "--json",
    )
    assert ran.code == 0, ran.err
    found = document(ran)["report"]
    (measured,) = found["measured"]
    assert found["reference"]["kv_cache"] is None
    assert measured["kv_cache"]["bits"] == "4,2"
    assert measured["kv_cache"]["token_bytes"] < measured["kv_cache"]["dense_token_bytes"] / 4.8
    assert 0 < measured["divergence"]["mean"] < 0.2
    assert found["reference"]["perplexity"]["value"] != measured["perplexity"]["value"]


def test_human_output_states_kv_widths_and_bytes_per_token() -> None:
    ran = hlwq("bench", "sample", "--ppl", *TEXT, "--kv-bits", "4")
    assert ran.code == 0, ran.err
    assert "| KV bits |" in ran.out
    assert (
        "keys and values of 2 layers in codes of 4 bits: 260 bytes per token instead of 1024, 3.94 times smaller"
        in ran.out
    )


@pytest.mark.parametrize("measure", ["--ppl", "--cosine"])
def test_quiet_output_is_one_figure(coded_sample: str, measure: str) -> None:
    ran = hlwq("bench", coded_sample, "--ref", "sample", measure, *TEXT, "-q")
    assert (ran.code, ran.err, ran.out.count("\n")) == (0, "", 1)
    assert float(ran.out) > 0


def test_quiet_hides_messages_of_libraries(coded_sample: str) -> None:
    ran = hlwq_process("bench", coded_sample, "--ref", "sample", "--ppl", "--cosine", *TEXT, "-q")
    assert (ran.code, ran.err, ran.out.count("\n")) == (0, "", 1)
    assert float(ran.out) > 0


def test_pipe_gets_lines_and_no_bars(coded_sample: str) -> None:
    ran = hlwq_process("bench", coded_sample, "--ref", "sample", "--ppl", *TEXT)
    assert ran.code == 0
    assert "%|" not in ran.err
    assert ran.err.splitlines()[0] == "loading sample ..."
    assert "| sample | 14.58 MB | not coded |" in ran.out


def test_bundled_text_replaces_wikitext_with_a_message_if_offline(hub: HubServer) -> None:
    hub.fail("wikitext", 0)  # drops the connection
    ran = hlwq("bench", "sample", "--ppl", "--window", "64", "--windows", "1", "--json")
    assert hub.requests
    assert ran.code == 0, ran.err
    assert document(ran)["report"]["protocol"]["text"] == "sample/addresses"
    assert "wikitext-2-raw cannot be downloaded" in ran.err


def big_llama(folder: Path, width: int) -> Path:
    """Return a llama with `width` hidden units in its MLP, whose weights are holes in a sparse file."""
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
    config = LLAMA_MODEL | text | {"vocab_size": 4096, "intermediate_size": width, "head_dim": 64, "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_figures_before_an_out_of_memory_error_are_reported(tmp_path: Path) -> None:
    big = big_llama(tmp_path / "big", 30_000_000)  # 23 GB, which 20 GB of address space cannot hold
    limits = {resource.RLIMIT_AS: 20 * 10**9}
    ran = hlwq_process("bench", "sample", big, "--ppl", *TEXT, "--json", limits=limits)
    assert ran.code == 1
    found = document(ran)["report"]
    assert [m["path"] for m in found["measured"]] == ["sample"]
    assert found["measured"][0]["perplexity"]["tokens"] == 126
    assert "there is not enough memory" in found["failed"]
    assert "Error: Stopped early: there is not enough memory" in ran.err
    assert "Unexpected" not in ran.err


def test_speed_is_measured_for_each_model_with_its_way_of_decoding(coded: Callable[[str], Path]) -> None:
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
