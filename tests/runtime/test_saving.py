"""A loaded model: a line that describes it, saved again with a manifest, and pushed."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hlwq_cli import HLWQModel, inspect, load_recipe, open_coded, quantize, verify
from hlwq_cli.errors import ConflictError, UnsupportedError, UsageError
from tests.cli.push.push_command import TOKEN, remote_files
from tests.cli.run_command import hlwq
from tests.support.files import read_tensors, tree
from tests.support.hub_server import HubServer

Copied = Callable[[Path], Path]


@pytest.fixture
def loaded(coded_sample: str) -> HLWQModel:
    return HLWQModel.from_pretrained(coded_sample, device="cpu")


@pytest.fixture(autouse=True)
def account(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.login(TOKEN, "ann")


def test_a_line_says_what_it_is(loaded: HLWQModel, coded_sample: str) -> None:
    what = f"HLWQModel({coded_sample!r}, Gemma4ForConditionalGeneration"
    assert repr(loaded) == f"{what}, codes of 5 bits, bfloat16 on cpu, text and images)"
    plain = HLWQModel.from_pretrained("sample", device="cpu", dtype="float32")
    assert repr(plain) == (
        "HLWQModel('sample', Gemma4ForConditionalGeneration, no codes, float32 on cpu, text and images)"
    )


def test_saved_again_it_is_the_same_checkpoint_for_every_command(
    loaded: HLWQModel, coded_sample: str, tmp_path: Path
) -> None:
    out = tmp_path / "deeper" / "saved"
    loaded.save_pretrained(out)
    assert read_tensors(out) == read_tensors(Path(coded_sample))
    before, after = open_coded(coded_sample).manifest, open_coded(out).manifest
    assert (after.coded, after.fingerprint, after.digest) == (before.coded, before.fingerprint, before.digest)
    assert verify(open_coded(out)).problems == ()
    assert hlwq("inspect", out, "--verify").code == 0
    assert inspect(out).bits_per_weight == inspect(coded_sample).bits_per_weight
    assert os.listdir(tmp_path) == ["deeper"]
    assert os.listdir(out.parent) == ["saved"]
    again = HLWQModel.from_pretrained(str(out), device="cpu")
    prompt = "The state of our union is"
    assert again.generate(prompt, max_new_tokens=8) == loaded.generate(prompt, max_new_tokens=8)


def test_a_changed_norm_is_saved_and_stated(loaded: HLWQModel, coded_sample: str, tmp_path: Path) -> None:
    name = next(name for name, _ in loaded.model.named_parameters() if name.endswith("norm.weight"))
    with torch.no_grad():
        loaded.model.get_parameter(name).mul_(2)
    loaded.save_pretrained(tmp_path / "saved")
    before, after = open_coded(coded_sample).manifest, open_coded(tmp_path / "saved").manifest
    hashes = {record.name: record.blake3 for record in before.kept}
    assert len([r for r in after.kept if r.blake3 != hashes[r.name]]) == 1
    assert after.digest != before.digest
    assert set(after.fingerprint) - set(before.fingerprint) == {"changed"}
    assert hlwq("inspect", tmp_path / "saved", "--verify").code == 0


def test_kept_tensors_in_another_dtype_are_stated(coded_sample: str, tmp_path: Path) -> None:
    HLWQModel.from_pretrained(coded_sample, device="cpu", dtype="float32").save_pretrained(tmp_path / "saved")
    assert {record.dtype for record in open_coded(tmp_path / "saved").manifest.kept} == {"F32"}
    assert hlwq("inspect", tmp_path / "saved", "--verify").code == 0


def test_changed_codes_are_refused_and_nothing_is_left(loaded: HLWQModel, tmp_path: Path) -> None:
    stored = loaded.model.state_dict()
    name = next(name for name in stored if name.endswith("codes"))
    stored[name][0] ^= 1
    with pytest.raises(UnsupportedError, match="were changed after loading") as error:
        loaded.save_pretrained(tmp_path / "saved")
    assert error.value.hint
    assert os.listdir(tmp_path) == []


def test_a_folder_that_holds_something_is_left_as_it_is(loaded: HLWQModel, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(ConflictError, match="not an empty folder"):
        loaded.save_pretrained(tmp_path)
    assert os.listdir(tmp_path) == ["note"]


def test_a_plain_model_is_saved_as_transformers_does(tmp_path: Path) -> None:
    plain = HLWQModel.from_pretrained("sample", device="cpu")
    plain.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "hlwq_manifest.json").exists()
    again = HLWQModel.from_pretrained(str(tmp_path / "saved"), device="cpu")
    expected = plain.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.model.state_dict().items())


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_it_is_pushed_as_the_command_does(hub: HubServer, coded_sample: str, copied: Copied) -> None:
    folder = copied(Path(coded_sample))
    loaded = HLWQModel.from_pretrained(str(folder), device="cpu")
    result = loaded.push_to_hub("ann/saved")
    assert result.private
    assert result.created
    assert remote_files(hub, repo="ann/saved") == tree(folder)
    from_hub = HLWQModel.from_pretrained("ann/saved", device="cpu")
    with pytest.raises(UsageError, match="not loaded from a folder"):
        from_hub.push_to_hub("ann/other")


def test_quantize_takes_bits_and_calibrates_as_the_command_does(tmp_path: Path) -> None:
    quantize("sample", tmp_path / "api", bits=4, calibrate="sample", calibration_tokens=2048, device="cpu")
    options = ["--bits", "4", "--calibrate", "sample", "--calibration-tokens", "2048", "--device", "cpu"]
    assert hlwq("quantize", "sample", tmp_path / "command", *options).code == 0
    assert read_tensors(tmp_path / "api") == read_tensors(tmp_path / "command")
    digests = [open_coded(tmp_path / name).manifest.digest for name in ("api", "command")]
    assert digests[0] == digests[1]


def test_bits_beside_a_recipe_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be used with a Recipe"):
        quantize("sample", tmp_path / "out", load_recipe(bits=4), bits=5)
    assert os.listdir(tmp_path) == []
