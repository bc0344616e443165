"""Weights that transformers does not load with the model: copied and checked, or named; the same for the Hub."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.cli.push.push_command import REPO, push_json, remote_files
from tests.cli.run_command import hlwq
from tests.support.builders import LLAMA, dense, save_shards, save_tensors
from tests.support.files import read_json, read_tensors, tree
from tests.support.hub_server import HubServer

COPIED = ("2_Dense/model.safetensors", "vision-lora/adapter_model.safetensors", "adapter_model.safetensors")
WARNING = (
    "Left out, as transformers does not load them: consolidated.safetensors (112 B), original/ (2 files, 17 B), "
    "pytorch_model.bin (8 B)."
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model with modules and an adapter of its own, and with copies of itself in other forms."""
    folder = save_tensors(tmp_path / "m", dense(2), LLAMA)
    for i, name in enumerate(COPIED):
        (folder / name).parent.mkdir(exist_ok=True)
        save_file({"linear.weight": torch.full((4, 8), float(i))}, folder / name)
        (folder / name).with_name("adapter_config.json").write_text("{}")
    (folder / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "2_Dense"}]))
    save_file({"layers.0.wq": torch.zeros(4, 2)}, folder / "consolidated.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "original").mkdir()
    (folder / "original" / "consolidated.00.pth").write_bytes(b"a pickle")
    (folder / "original" / "model.safetensors").write_bytes(b"no header")
    return folder


def check_result(model: Path, out: Path) -> None:
    assert {n: (out / n).read_bytes() for n in COPIED} == {n: (model / n).read_bytes() for n in COPIED}
    weights = {str(p.relative_to(out)) for p in out.rglob("*") if p.suffix in (".safetensors", ".bin", ".pth")}
    assert weights == {*COPIED, "model.safetensors"}
    assert not [n for n in read_tensors(out) if "layers.0.wq" in n]
    stated = {f["name"]: f["sha256"] for f in read_json(out / "hlwq_manifest.json")["files"]}
    assert {n: stated[n] for n in COPIED} == {n: tree(model)[n] for n in COPIED}


def test_modules_are_copied_and_copies_of_the_model_are_named(model: Path, tmp_path: Path) -> None:
    ran = hlwq("quantize", model, tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["warnings"] == [WARNING]
    assert f"Warning: {WARNING}\n" in ran.err
    check_result(model, tmp_path / "out")
    assert hlwq("inspect", tmp_path / "out", "--verify", "-q").out == "ok\n"


def test_plan_names_what_is_left_out(model: Path) -> None:
    assert json.loads(hlwq("quantize", model, "--dry-run", "--json").out)["warnings"] == [WARNING]
    ran = hlwq("quantize", model, "--dry-run")
    assert (ran.code, ran.err) == (0, f"Warning: {WARNING}\n")
    assert hlwq("quantize", model, "--dry-run", "-q").err == ""


def test_hub_model_gives_the_same_files_and_warnings(hub: HubServer, model: Path, tmp_path: Path) -> None:
    hub.publish("tests/modules", model)
    for options in ([], ["--delete-source"]):
        out = tmp_path / f"out{len(options)}"
        ran = hlwq("quantize", "tests/modules", out, "--json", *options)
        assert json.loads(ran.out)["warnings"] == [WARNING]
        check_result(model, out)
        assert not (out / ".hlwq_source").exists()
    assert not [r.path for r in hub.requests if "consolidated" in r.path or "pytorch_model" in r.path]


def test_changed_byte_of_a_copied_module_is_found(model: Path, tmp_path: Path) -> None:
    assert hlwq("quantize", model, tmp_path / "out").code == 0
    path = tmp_path / "out" / COPIED[0]
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    ran = hlwq("inspect", tmp_path / "out", "--verify")
    assert ran.code == 6
    assert f"{COPIED[0]} does not match the manifest: its sha256 differs" in ran.out


def test_missing_copied_module_is_found(model: Path, tmp_path: Path) -> None:
    assert hlwq("quantize", model, tmp_path / "out").code == 0
    (tmp_path / "out" / COPIED[1]).unlink()
    assert f"{COPIED[1]} is missing" in hlwq("inspect", tmp_path / "out", "--verify").out


def test_copied_modules_come_back_on_export(model: Path, tmp_path: Path) -> None:
    assert hlwq("quantize", model, tmp_path / "out").code == 0
    assert hlwq("export", tmp_path / "out", tmp_path / "plain").code == 0
    assert {n: tree(tmp_path / "plain")[n] for n in COPIED} == {n: tree(model)[n] for n in COPIED}


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_copied_modules_are_pushed(account: HubServer, model: Path, tmp_path: Path) -> None:
    assert hlwq("quantize", model, tmp_path / "out").code == 0
    push_json(tmp_path / "out", REPO)
    assert remote_files(account) == tree(tmp_path / "out")
    assert set(COPIED) <= set(remote_files(account))
    assert hlwq("inspect", REPO, "--verify", "-q").out == "ok\n"


def test_changed_module_makes_another_result(model: Path, tmp_path: Path) -> None:
    assert hlwq("quantize", model, tmp_path / "out").code == 0
    save_file({"linear.weight": torch.ones(4, 8)}, model / COPIED[0])
    assert hlwq("quantize", model, tmp_path / "out").code == 5


def test_shards_in_subfolders_of_the_hub_are_read(hub: HubServer, tmp_path: Path) -> None:
    tensors = dense(2)
    names = sorted(tensors)
    shards = {"weights/1.safetensors": names[:3], "weights/more/2.safetensors": names[3:]}
    for file in shards:
        (tmp_path / "m" / file).parent.mkdir(parents=True, exist_ok=True)
    save_shards(tmp_path / "m", {f: {n: tensors[n] for n in part} for f, part in shards.items()}, LLAMA)
    save_tensors(tmp_path / "one", tensors, LLAMA)
    hub.publish("tests/folders", tmp_path / "m")
    assert hlwq("quantize", tmp_path / "one", tmp_path / "a").code == 0
    assert hlwq("quantize", tmp_path / "m", tmp_path / "b").code == 0
    assert hlwq("quantize", "tests/folders", tmp_path / "c", "--delete-source").code == 0
    assert read_tensors(tmp_path / "a") == read_tensors(tmp_path / "b") == read_tensors(tmp_path / "c")


def test_name_of_the_weights_in_the_config_does_not_reach_the_result(tmp_path: Path) -> None:
    folder = save_tensors(tmp_path / "m", dense(), LLAMA | {"transformers_weights": "mine.safetensors"})
    (folder / "model.safetensors").rename(folder / "mine.safetensors")
    assert hlwq("quantize", folder, tmp_path / "out").code == 0
    assert "transformers_weights" not in read_json(tmp_path / "out" / "config.json")


def test_stale_shards_of_the_hub_are_not_read(hub: HubServer, tmp_path: Path) -> None:
    stale = {"model-00001-of-00001.safetensors": {"model.norm.weight": torch.ones(128)}}
    folder = save_shards(tmp_path / "m", stale, LLAMA)
    save_tensors(folder, dense(), LLAMA)
    hub.publish("tests/stale", folder)
    ran = hlwq("quantize", "tests/stale", tmp_path / "out", "--json")
    assert "model-00001-of-00001.safetensors (" in json.loads(ran.out)["warnings"][0]
    assert set(read_json(tmp_path / "out" / "hlwq_manifest.json")["fingerprint"]["source"]) == {"repo", "revision"}
    assert "model.norm.weight" not in read_tensors(tmp_path / "out")
