"""Output folders with other files or settings, or not writable: exit code 5 or 4, and nothing is changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.run_command import assert_refused, hlwq
from tests.support.builders import LLAMA, add_sidecar_files, dense, save_tensors, tiny_llama
from tests.support.files import tree

JOURNAL = ".hlwq_run.jsonl"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "m")


@pytest.fixture
def done(model: Path, tmp_path: Path) -> Path:
    """A finished result."""
    out = tmp_path / "out"
    assert hlwq("quantize", model, out).code == 0
    return out


def test_folder_with_other_files_is_not_changed(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "taken"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    before = tree(out)
    for options in ([], ["--overwrite"]):
        ran = hlwq("quantize", model, out, *options)
        assert_refused(ran, 5, f"{out} is not empty and not made by hlwq.", "Choose another folder")
    assert tree(out) == before


def test_source_folder_is_refused_as_output(model: Path) -> None:
    before = tree(model)
    assert_refused(hlwq("quantize", model, model, "--overwrite"), 5, "is not empty")
    assert tree(model) == before


def test_output_that_is_a_file_is_not_changed(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert_refused(hlwq("quantize", model, tmp_path / "file"), 5, "is a file.")
    assert (tmp_path / "file").read_text() == "mine"


def test_output_below_a_file_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    ran = hlwq("quantize", model, tmp_path / "file" / "below")
    assert_refused(ran, ran.code)
    assert ran.code in (4, 5)


@pytest.mark.parametrize(
    ("options", "differs"),
    [
        (["--bits", "4"], "recipe.bits (now 4, then 5)"),
        (["--recipe", "classic"], "recipe.recipe (now classic, then default)"),
        (["--effort", "fast"], "recipe.search (now False, then True)"),
        (["--tensor", "q_proj=6"], "recipe.tensor (now ['q_proj=6'], then [])"),
        (["--exclude", r"layers\.0\."], "recipe.exclude"),
        (["--include", r"layers\.0\."], "recipe.include"),
        (["--max-shard-size", "50KB"], "max_shard_bytes (now 50000, then 2000000000)"),
        (["--base-model", "owner/name"], "base_model"),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)
def test_result_of_other_arguments_is_not_changed_and_the_difference_is_named(
    model: Path, done: Path, options: list[str], differs: str
) -> None:
    before = tree(done)
    assert_refused(hlwq("quantize", model, done, *options), 5, "holds a checkpoint that differs in", differs)
    assert tree(done) == before


def test_result_of_other_weights_of_the_same_shapes_is_not_changed(done: Path, tmp_path: Path) -> None:
    tuned = {n: t + 0.001 for n, t in dense(2).items()}
    other = save_tensors(tmp_path / "tuned", tuned, LLAMA)
    before = tree(done)
    assert_refused(hlwq("quantize", other, done), 5, "holds a checkpoint that differs in source")
    assert tree(done) == before


def test_unfinished_run_is_not_continued_with_other_weights_of_the_same_shapes(done: Path, tmp_path: Path) -> None:
    other = save_tensors(tmp_path / "tuned", {n: t + 0.001 for n, t in dense(2).items()}, LLAMA)
    unfinish(done)
    assert_refused(hlwq("quantize", other, done), 5, "holds an unfinished run that differs in source")


def test_result_whose_source_has_another_config_is_not_changed(model: Path, done: Path) -> None:
    before = tree(done)
    (model / "config.json").write_text(json.dumps(LLAMA | {"rope_theta": 5.0}))
    assert_refused(hlwq("quantize", model, done), 5, "differs in source")
    assert tree(done) == before


def test_result_whose_source_has_a_new_chat_template_is_not_changed(model: Path, done: Path) -> None:
    before = tree(done)
    (model / "chat_template.jinja").write_text("new")
    assert_refused(hlwq("quantize", model, done), 5, "differs in source")
    assert tree(done) == before


@pytest.mark.parametrize("how", ["gone", "cut short"])
def test_result_without_some_weights_is_not_complete(model: Path, done: Path, how: str) -> None:
    weights = done / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    if how == "gone":
        weights.unlink()
    ran = hlwq("quantize", model, done)
    assert ran.code != 0 or weights.read_bytes() == whole, "either say so, or write them again"


def test_overwrite_replaces_a_result_and_keeps_other_files(model: Path, done: Path, tmp_path: Path) -> None:
    for name in ("notes.txt", "plots/loss.png", "adapter.safetensors.txt", ".secret"):
        (done / name).parent.mkdir(exist_ok=True)
        (done / name).write_text("mine")
    options = ["--bits", "3", "--max-shard-size", "20KB"]
    assert hlwq("quantize", model, done, *options, "--overwrite").code == 0
    assert hlwq("quantize", model, tmp_path / "fresh", *options).code == 0
    found, fresh = tree(done), tree(tmp_path / "fresh")
    assert {n: found[n] for n in fresh} == fresh
    assert sorted(set(found) - set(fresh)) == [".secret", "adapter.safetensors.txt", "notes.txt", "plots/loss.png"]


def unfinish(done: Path) -> None:
    """Turn a finished folder into the state just before its manifest is written."""
    fingerprint = json.loads((done / "hlwq_manifest.json").read_text())["fingerprint"]
    (done / "hlwq_manifest.json").unlink()
    (done / JOURNAL).write_text(json.dumps(fingerprint) + "\n")


def test_unfinished_run_of_other_arguments_is_not_changed(model: Path, done: Path) -> None:
    unfinish(done)
    before = tree(done)
    ran = hlwq("quantize", model, done, "--bits", "2")
    assert_refused(ran, 5, "holds an unfinished run that differs in recipe.bits (now 2, then 5)", "--overwrite")
    assert tree(done) == before


@pytest.mark.parametrize(
    "line", ["{", "[]", "{}", "null", '{"file": 5}', "\ufffd", '{"file": {}, "coded": [], "kept": []}']
)
@pytest.mark.parametrize("first", [True, False], ids=["first line", "second line"])
def test_invalid_journal_never_ends_in_an_unexpected_error(model: Path, done: Path, line: str, first: bool) -> None:
    unfinish(done)
    (done / JOURNAL).write_text(f"{line}\n" if first else (done / JOURNAL).read_text() + f"{line}\n")
    ran = hlwq("quantize", model, done)
    assert "Unexpected" not in ran.err
    assert ran.code == 0 or str(done) in ran.err
    assert hlwq("quantize", model, done, "--overwrite").code == 0


def test_result_of_a_version_before_the_first_release_is_reported_and_replaced(model: Path, done: Path) -> None:
    path, before = done / "hlwq_manifest.json", tree(done)
    path.write_text(path.read_text().replace('"blake3"', '"sha256"'))
    for command in (["quantize", model, done], ["inspect", done]):
        assert_refused(hlwq(*command), 1, "was made before hlwq was first released", "--overwrite")
    assert hlwq("quantize", model, done, "--overwrite").code == 0
    assert tree(done) == before


@pytest.mark.parametrize("text", ["", "{", '{"format_version": 1}', "[]"])
def test_overwrite_replaces_a_result_whose_manifest_cannot_be_read(model: Path, done: Path, text: str) -> None:
    before = tree(done)
    (done / "hlwq_manifest.json").write_text(text)
    (done / "mine.txt").write_text("mine")
    assert_refused(hlwq("quantize", model, done), 1, "hlwq_manifest.json is not a valid manifest")
    assert hlwq("quantize", model, done, "--overwrite").code == 0
    assert (done / "mine.txt").read_text() == "mine"
    (done / "mine.txt").unlink()
    assert tree(done) == before


def test_overwrite_removes_an_unfinished_run(model: Path, tmp_path: Path) -> None:
    add_sidecar_files(model)
    out = tmp_path / "out"
    assert hlwq("quantize", model, out, "--max-shard-size", "20KB").code == 0
    unfinish(out)
    assert hlwq("quantize", model, out, "--overwrite").code == 0
    assert hlwq("quantize", model, tmp_path / "fresh").code == 0
    assert tree(out) == tree(tmp_path / "fresh")
    assert hlwq("inspect", out, "--verify").code == 0


def test_overwrite_of_an_unfinished_run_keeps_other_weights(model: Path, done: Path) -> None:
    unfinish(done)
    shutil.copy(model / "model.safetensors", done / "my-adapter.safetensors")
    assert hlwq("quantize", model, done, "--bits", "4", "--overwrite").code == 0
    assert (done / "my-adapter.safetensors").exists()


def test_overwrite_keeps_the_earlier_result_when_the_source_is_bad(model: Path, done: Path) -> None:
    before = tree(done)
    raw = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(raw[:-10])
    assert_refused(hlwq("quantize", model, done, "--bits", "4", "--overwrite"), 1, "model.safetensors")
    assert tree(done) == before


def test_overwrite_never_deletes_outside_the_folder_whatever_the_manifest_says(
    model: Path, done: Path, tmp_path: Path
) -> None:
    (tmp_path / "victim.txt").write_text("precious")
    manifest = json.loads((done / "hlwq_manifest.json").read_text())
    manifest["files"] += [{"name": n, "size": 8, "sha256": ""} for n in ("../victim.txt", str(tmp_path / "victim.txt"))]
    (done / "hlwq_manifest.json").write_text(json.dumps(manifest))
    hlwq("quantize", model, done, "--bits", "4", "--overwrite")
    assert (tmp_path / "victim.txt").read_text() == "precious"


def test_failed_run_resumes_after_its_source_is_repaired(tmp_path: Path) -> None:
    tensors = dense(4)
    good = tensors["model.layers.3.self_attn.q_proj.weight"].clone()
    tensors["model.layers.3.self_attn.q_proj.weight"][0, 0] = float("nan")
    options = ["--max-shard-size", "20KB"]
    assert hlwq("quantize", save_tensors(tmp_path / "m", tensors, LLAMA), tmp_path / "out", *options).code == 1
    tensors["model.layers.3.self_attn.q_proj.weight"] = good
    model = save_tensors(tmp_path / "m", tensors, LLAMA)
    hlwq("quantize", model, tmp_path / "out", *options, "--overwrite")
    hlwq("quantize", model, tmp_path / "fresh", *options)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


@pytest.mark.parametrize("command", ["quantize", "export"])
def test_too_long_folder_name_is_refused(
    model: Path, coded: Callable[[str], Path], tmp_path: Path, command: str
) -> None:
    source = model if command == "quantize" else coded("qwen3")
    ran = hlwq(command, source, tmp_path / ("x" * 300))
    assert_refused(ran, ran.code)


def test_export_into_a_folder_with_files_changes_nothing(coded: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "file.txt"):
        assert_refused(hlwq("export", coded("qwen3"), out), 5, f"{out} is not empty.")
    assert tree(tmp_path) == {"file.txt": tree(tmp_path)["file.txt"]}
