"""A model on the Hub: quantized, planned from headers alone, and inspected without its weights."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.run_command import environment, hlwq, hlwq_process
from tests.support.builders import LLAMA, SIDECAR_FILES, add_sidecar_files, dense, save_tensors, tiny_llama
from tests.support.files import read_json, read_tensors, relative_error, tree
from tests.support.hub_server import HubServer

Family = Callable[[str], Path]
TOKEN = "hf_" + "s3cr3t" * 6


def quantization_config(folder: Path) -> dict[str, object]:
    config: dict[str, object] = read_json(folder / "config.json")["quantization_config"]
    return config


def weights_sent(hub: HubServer) -> int:
    return hub.bytes_sent(r"^/storage/.*\.safetensors$")


def test_hub_model_gives_the_same_tensors_as_its_folder(
    hub: HubServer, family: Family, coded: Family, tmp_path: Path
) -> None:
    repo = hub.publish("tests/gemma4", family("gemma4"))
    ran = hlwq("quantize", "tests/gemma4", tmp_path / "out", "--max-shard-size", "150KB", "--json")
    assert ran.code == 0, ran.err
    assert read_tensors(tmp_path / "out") == read_tensors(coded("gemma4"))
    assert quantization_config(tmp_path / "out")["source"] == {"repo": "tests/gemma4", "revision": repo.commit("main")}
    manifest = read_json(tmp_path / "out" / "hlwq_manifest.json")
    assert manifest["source"] == {"id": "tests/gemma4", "revision": repo.commit("main")}


def test_sidecar_files_of_the_hub_are_copied(hub: HubServer, family: Family, tmp_path: Path) -> None:
    hub.publish("tests/companions", family("qwen3"))
    assert hlwq("quantize", "tests/companions", tmp_path / "out").code == 0
    assert {n: (tmp_path / "out" / n).read_bytes() for n in SIDECAR_FILES} == SIDECAR_FILES


def test_card_names_the_hub_model_as_base(hub: HubServer, tmp_path: Path) -> None:
    hub.publish("tests/base", tiny_llama(tmp_path / "m"))
    assert hlwq("quantize", "tests/base", tmp_path / "out").code == 0
    assert "\nbase_model: tests/base\nbase_model_relation: quantized\n" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("by", ["tag", "commit"])
def test_revision_is_a_branch_tag_or_commit_and_is_pinned(hub: HubServer, tmp_path: Path, by: str) -> None:
    name = f"tests/revision-{by}"
    hub.publish(name, tiny_llama(tmp_path / "new"))
    old = save_tensors(tmp_path / "old", dense(1, seed=9), LLAMA)
    commit = hub.publish(name, old, "v1.0").commit("v1.0")
    revision = "v1.0" if by == "tag" else commit
    assert hlwq("quantize", name, tmp_path / "out", "--revision", revision).code == 0
    assert quantization_config(tmp_path / "out")["source"] == {"repo": name, "revision": commit}
    assert read_tensors(tmp_path / "out")["lm_head.weight"] == read_tensors(old)["lm_head.weight"]


def test_dry_run_fetches_headers_and_no_weights(hub: HubServer, tmp_path: Path) -> None:
    model = save_tensors(tmp_path / "m", dense(4, width=512), LLAMA)
    hub.publish("tests/dry", model)
    local = json.loads(hlwq("quantize", model, "--dry-run", "--json").out)
    remote = json.loads(hlwq("quantize", "tests/dry", "--dry-run", "--json").out)
    assert remote == local
    assert 0 < weights_sent(hub) <= 1 << 17
    assert (model / "model.safetensors").stat().st_size > 2_000_000


def test_header_longer_than_the_first_request_is_read_whole(hub: HubServer, tmp_path: Path) -> None:
    many = {f"model.layers.{i}.{'x' * 60}.bias": dense()["model.layers.0.input_layernorm.weight"] for i in range(1500)}
    hub.publish("tests/long-header", save_tensors(tmp_path / "m", dense() | many, LLAMA))
    ran = hlwq("quantize", "tests/long-header", "--dry-run", "--json")
    assert len(json.loads(ran.out)["tensors"]) == 1504


def test_result_on_the_hub_is_inspected_without_its_weights(hub: HubServer, tmp_path: Path) -> None:
    model = save_tensors(tmp_path / "m", dense(4, width=512), LLAMA)
    out = tmp_path / "out"
    assert hlwq("quantize", model, out, "--max-shard-size", "300KB").code == 0
    hub.publish("tests/pushed", out)
    local, remote = (json.loads(hlwq("inspect", where, "--json").out) for where in (out, "tests/pushed"))
    assert remote | {"path": ""} == local | {"path": ""}
    ranges = {r.range for r in hub.requests if r.path.endswith(".safetensors")}
    assert ranges == {"bytes=0-131071"}


def test_result_on_the_hub_is_verified_by_its_bytes(hub: HubServer, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert hlwq("quantize", tiny_llama(tmp_path / "m"), out).code == 0
    hub.publish("tests/verified", out)
    assert hlwq("inspect", "tests/verified", "--verify", "-q").out == "ok\n"


def test_result_on_the_hub_is_exported(hub: HubServer, family: Family, coded: Family, tmp_path: Path) -> None:
    hub.publish("tests/to-export", coded("qwen3"))
    ran = hlwq("export", "tests/to-export", tmp_path / "plain")
    assert ran.code == 0, ran.err
    source, back = read_tensors(family("qwen3")), read_tensors(tmp_path / "plain")
    assert {n: t.shape for n, t in back.items()} == {n: t.shape for n, t in source.items()}
    assert all(relative_error(back[n].values, source[n].values) < 1.8e-3 for n in source)
    assert {n: (tmp_path / "plain" / n).read_bytes() for n in SIDECAR_FILES} == SIDECAR_FILES


def test_revision_counts_when_two_results_are_compared(hub: HubServer, tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "m")
    for bits in ("5", "4"):
        assert hlwq("quantize", model, tmp_path / bits, "--bits", bits).code == 0
    hub.publish("tests/compared", tmp_path / "5")
    hub.publish("tests/compared", tmp_path / "4", "four")
    assert hlwq("inspect", "tests/compared", "--diff", tmp_path / "5").code == 0
    assert hlwq("inspect", "tests/compared", "--revision", "four", "--diff", tmp_path / "4").code == 0


def test_gated_model_is_read_with_a_token_that_is_never_printed(hub: HubServer, tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "m")
    add_sidecar_files(model)
    hub.publish("tests/gated-and-open", model, gated=True)
    hub.tokens.add(TOKEN)
    env = environment(HF_TOKEN=TOKEN, HLWQ_DEBUG="1")
    ran = hlwq_process("quantize", "tests/gated-and-open", tmp_path / "out", env=env)
    assert ran.code == 0, ran.err
    assert TOKEN not in ran.out + ran.err
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()]


def test_token_is_sent_to_the_hub_and_not_to_the_storage_host(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.tokens.add(TOKEN)
    hub.publish("tests/token", tiny_llama(tmp_path / "m"), private=True)
    assert hlwq("quantize", "tests/token", tmp_path / "out").code == 0
    tokens = {r.path.split("/")[1] == "storage": r.token for r in hub.requests}
    assert tokens == {True: "", False: TOKEN}


def test_second_run_downloads_no_weights(hub: HubServer, tmp_path: Path) -> None:
    hub.publish("tests/twice", save_tensors(tmp_path / "m", dense(4, width=512), LLAMA))
    assert hlwq("quantize", "tests/twice", tmp_path / "a").code == 0
    hub.requests.clear()
    assert hlwq("quantize", "tests/twice", tmp_path / "b").code == 0
    assert weights_sent(hub) <= 1 << 17
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_tests_connect_to_the_local_hub_only(hub: HubServer) -> None:
    import huggingface_hub

    assert os.environ["HF_ENDPOINT"] == huggingface_hub.constants.ENDPOINT == hub.endpoint
