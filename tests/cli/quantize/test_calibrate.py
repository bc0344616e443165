"""`hlwq quantize --calibrate` and `--imatrix`: what they read, what is kept, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from tests.cli.run_command import CommandResult, assert_refused, hlwq
from tests.runtime.calibration_data.imatrix_files import write_dat, write_gguf
from tests.runtime.kinds import ENCODER, save
from tests.support.builders import HIDDEN, TEXT

OPTIONS = ("--bits", "4", "--device", "cpu", "--json")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(LlamaForCausalLM(LlamaConfig(**TEXT)), tmp_path_factory.mktemp("llama"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text(" ".join(f"word {i} of many" for i in range(400)))
    return path


def done(ran: CommandResult) -> CommandResult:
    assert ran.code == 0, ran
    return ran


def losses(folder: Path) -> dict[str, float | None]:
    document = json.loads(done(hlwq("inspect", folder, "--json")).out)
    return {tensor["name"]: tensor["loss"] for tensor in document["coded"]}


def test_a_given_text_calibrates_and_its_kept_tokens_make_the_same_bytes(
    model: Path, text: Path, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    done(hlwq("quantize", model, one, *OPTIONS, "--calibrate", text, "--calibration-tokens", "2048"))
    found = losses(one)
    assert len(found) == 14
    assert all(loss is not None and 0 < loss < 0.02 for loss in found.values())
    shown = done(hlwq("inspect", one)).out
    assert "Calibrated on 2,048 tokens of words.txt." in " ".join(shown.split())
    card = (one / "README.md").read_text()
    assert "Calibrated on 2,048 tokens of words.txt" in card
    assert "--calibrate calibration.safetensors" in card
    done(hlwq("quantize", model, two, *OPTIONS, "--calibrate", one / "calibration.safetensors"))
    assert done(hlwq("inspect", one, "--diff", two, "--json")).code == 0
    assert (one / "calibration.safetensors").read_bytes() == (two / "calibration.safetensors").read_bytes()
    assert done(hlwq("inspect", one, "--verify")).code == 0


def test_a_calibrated_tensor_has_less_loss_and_more_error_than_a_plain_one(
    model: Path, text: Path, tmp_path: Path
) -> None:
    """The loss is measured with H of the same tokens: plain codes are worse where it counts."""
    done(hlwq("quantize", model, tmp_path / "c", *OPTIONS, "--calibrate", text, "--calibration-tokens", "2048"))
    done(hlwq("quantize", model, tmp_path / "p", *OPTIONS))
    errors = [
        {t["name"]: t["nmse"] for t in json.loads(done(hlwq("inspect", tmp_path / n, "--json")).out)["coded"]}
        for n in "cp"
    ]
    assert all(errors[0][name] > errors[1][name] for name in errors[0])
    assert all(loss is None for loss in losses(tmp_path / "p").values())
    assert not (tmp_path / "p" / "calibration.safetensors").exists()
    assert "Calibrated" not in (tmp_path / "p" / "README.md").read_text()


def test_without_a_value_the_model_writes_its_own_text(model: Path, tmp_path: Path) -> None:
    options = ("--calibration-tokens", "512", "--seed", "7", *OPTIONS)
    done(hlwq("quantize", model, tmp_path / "o", "--calibrate", *options))
    with safe_open(tmp_path / "o" / "calibration.safetensors", "pt") as kept:
        assert kept.get_tensor("input_ids").shape == (4, 128)  # the model's context
    assert "of the model's own text (seed 7)" in (tmp_path / "o" / "README.md").read_text()
    again = done(hlwq("quantize", model, tmp_path / "o", *options, "--calibrate"))
    assert json.loads(again.out)["already_complete"]


def test_tokens_need_not_be_kept(model: Path, text: Path, tmp_path: Path) -> None:
    done(hlwq("quantize", model, tmp_path / "o", *OPTIONS, "--calibrate", text, "--no-keep-calibration"))
    assert not (tmp_path / "o" / "calibration.safetensors").exists()
    assert "--calibrate words.txt" in (tmp_path / "o" / "README.md").read_text()


@pytest.mark.parametrize("form", ["gguf", "dat"])
def test_an_imatrix_calibrates_without_running_the_model(model: Path, tmp_path: Path, form: str) -> None:
    rng, names = np.random.default_rng(0), {"attn_q": HIDDEN, "ffn_down": 192}
    entries = {
        f"blk.{i}.{name}.weight": (
            rng.random((1, width), np.float32) * 1000,
            np.full((1, 1), 1024, np.float32),
        )
        for i in range(2)
        for name, width in names.items()
    }
    path = (write_gguf if form == "gguf" else write_dat)(tmp_path / f"imatrix.{form}", entries)
    done(hlwq("quantize", model, tmp_path / "o", *OPTIONS, "--imatrix", path))
    found = losses(tmp_path / "o")
    assert sorted(name.rpartition(".")[2] for name, loss in found.items() if loss is not None) == [
        *["down_proj"] * 2,
        *["q_proj"] * 2,
    ]
    assert (
        f"Calibrated on the importance matrix imatrix.{form} (1,024 tokens)"
        in (tmp_path / "o" / "README.md").read_text()
    )


def test_an_imatrix_of_another_model_is_refused(model: Path, tmp_path: Path) -> None:
    ones = np.ones((1, 64), np.float32), np.ones((1, 1), np.float32)
    path = write_gguf(tmp_path / "a.gguf", {"blk.0.attn_q.weight": ones})
    assert_refused(hlwq("quantize", model, tmp_path / "o", "--imatrix", path), 2, "has 64 inputs", "1 x 128")
    path = write_gguf(tmp_path / "b.gguf", {"blk.0.attn_q.weight": ones, "blk.9.attn_q.weight": ones})
    assert_refused(hlwq("quantize", model, tmp_path / "o", "--imatrix", path), 2, "blk.9.attn_q.weight")
    assert not (tmp_path / "o").exists()


def test_bad_data_is_refused_before_anything_is_written(model: Path, text: Path, tmp_path: Path) -> None:
    empty, short, model_file = tmp_path / "empty.txt", tmp_path / "short.txt", tmp_path / "model.gguf"
    empty.write_text("")
    short.write_text("too short")
    write_gguf(model_file, {}, kind="model")
    infinite = np.full((1, HIDDEN), np.inf, np.float32), np.ones((1, 1), np.float32)
    broken = write_gguf(tmp_path / "inf.gguf", {"blk.0.attn_q.weight": infinite})
    refusals = [
        (2, "is empty", "--calibrate", empty),
        (2, "needs at least 2,048", "--calibrate", short),
        (3, "There is no file", "--calibrate", tmp_path / "none.jsonl"),
        (3, "There is no file", "--calibrate", tmp_path / "none.safetensors"),
        (2, "does not hold calibration tokens", "--calibrate", model / "model.safetensors"),
        (2, "but not an imatrix", "--imatrix", model_file),
        (1, "are not finite", "--imatrix", broken),
        (2, "cannot be used together", "--calibrate", text, "--imatrix", broken),
        (2, "is too few", "--calibrate", text, "--calibration-tokens", "100"),
        (2, "--seed -1 is not valid", "--calibrate", text, "--seed", "-1"),
    ]
    for code, says, *options in refusals:
        assert_refused(hlwq("quantize", model, tmp_path / "o", *options), code, says)
    assert not (tmp_path / "o").exists()


def test_an_encoder_is_calibrated_on_a_text_and_asked_for_one(text: Path, tmp_path: Path) -> None:
    bert = save(BertForMaskedLM(BertConfig(**ENCODER)), tmp_path / "bert")
    assert_refused(hlwq("quantize", bert, tmp_path / "o", "--calibrate"), 2, "does not write text by itself")
    assert not (tmp_path / "o").exists()
    done(hlwq("quantize", bert, tmp_path / "o", *OPTIONS, "--calibrate", text, "--calibration-tokens", "2048"))
    assert sum(loss is not None for loss in losses(tmp_path / "o").values()) >= 6


def test_bench_says_when_it_measures_on_calibration_text(model: Path, text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(" ".join(f"{i} quite other things" for i in range(9, 400)))
    done(hlwq("quantize", model, tmp_path / "o", *OPTIONS, "--calibrate", text, "--calibration-tokens", "2048"))
    options = ("--ppl", "--window", "64", "--windows", "4", "--device", "cpu")
    assert "was calibrated on" in done(hlwq("bench", tmp_path / "o", *options, "--data", text)).err
    assert "was calibrated on" not in done(hlwq("bench", tmp_path / "o", *options, "--data", other)).err


def test_moments_that_are_not_finite_are_named(model: Path, text: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    damaged = shutil.copytree(model, tmp_path / "damaged")
    tensors = load_file(damaged / "model.safetensors")
    tensors["model.norm.weight"].fill_(1)
    tensors["model.layers.0.input_layernorm.weight"].fill_(torch.finfo(torch.float32).max)
    save_file(tensors, damaged / "model.safetensors", {"format": "pt"})
    ran = hlwq("quantize", damaged, tmp_path / "o", "--device", "cpu", "--calibrate", text)
    assert_refused(ran, 1, "not finite")
