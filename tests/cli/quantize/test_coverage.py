"""A run that codes nothing ends before any work, and one that codes little says what stays uncoded and why."""

import json
from pathlib import Path

import pytest
import torch

from hlwq_cli.checkpoint import load_recipe, quantize
from hlwq_cli.errors import GateMissedError
from tests.cli.run_command import assert_refused, hlwq
from tests.support.builders import LLAMA, dense, save_tensors

Q = "model.layers.0.self_attn.q_proj.weight"
DTYPE_HINT = "Give the checkpoint in bfloat16, float16 or float32."
OPTIONS_HINT = "Change --include, --exclude or --tensor."


@pytest.mark.parametrize(("dtype", "name"), [(torch.float64, "F64"), (torch.int8, "I8")])
def test_weights_of_other_types_are_refused_with_their_type(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    tensors = {n: t.to(dtype) if "proj" in n else t for n, t in dense(2).items()}
    ran = hlwq("quantize", save_tensors(tmp_path / "m", tensors, LLAMA), tmp_path / "out")
    assert_refused(ran, 6, f"Nothing would be coded: {name} is no weight type ({Q} and 1 more);", DTYPE_HINT)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--exclude", "."], "excluded"),
        (["--include", "embed"], "not included"),
        (["--tensor", "proj=keep"], "kept by --tensor"),
    ],
)
def test_patterns_that_leave_nothing_are_named(tmp_path: Path, options: list[str], reason: str) -> None:
    model = save_tensors(tmp_path / "m", dense(2), LLAMA)
    ran = hlwq("quantize", model, tmp_path / "out", *options)
    assert_refused(ran, 6, f"Nothing would be coded: {reason} ({Q} and", OPTIONS_HINT)
    assert not (tmp_path / "out").exists()


def test_checkpoint_without_a_matrix_is_refused(tmp_path: Path) -> None:
    vectors = {"model.norm.weight": torch.ones(128)}
    model = save_tensors(tmp_path / "m", vectors, {"model_type": "nobody_knows_it"})
    assert_refused(hlwq("quantize", model, tmp_path / "out"), 6, f"{model} has no matrix.")


def test_dry_run_shows_the_plan_that_codes_nothing_and_exits_with_6(tmp_path: Path) -> None:
    ran = hlwq("quantize", save_tensors(tmp_path / "m", dense(), LLAMA), "--dry-run", "--json", "--exclude", ".")
    assert (ran.code, json.loads(ran.out)["unquantized_share"]) == (6, 1.0)
    assert ran.err.startswith("Error: Nothing would be coded: excluded (")


def test_library_raises_before_any_work(tmp_path: Path) -> None:
    model = save_tensors(tmp_path / "m", dense(), LLAMA)
    with pytest.raises(GateMissedError, match="Nothing would be coded: not included") as caught:
        quantize(str(model), tmp_path / "out", load_recipe(include=("embed",)))
    assert caught.value.exit_code == 6
    assert not (tmp_path / "out").exists()


def test_less_than_half_of_the_weights_is_a_warning_with_the_largest_kept(tmp_path: Path) -> None:
    large = {"model.embed_tokens.weight": torch.randn(400, 128).bfloat16()}
    model = save_tensors(tmp_path / "m", dense(1) | large, LLAMA)
    coded, kept = 128 * 128, (400 + 40) * 128
    warning = (
        f"Only {coded / (coded + kept):.1%} of the weights in matrices are coded. Largest kept: "
        "model.embed_tokens.weight (embedding stays exact), lm_head.weight (head stays exact)."
    )
    plan = hlwq("quantize", model, "--dry-run", "--json")
    assert (plan.code, json.loads(plan.out)["warnings"]) == (0, [warning])
    ran = hlwq("quantize", model, tmp_path / "out")
    assert ran.code == 0
    assert f"Warning: {warning}\n" in ran.err
    assert "Warning" not in ran.out
    again = quantize(str(model), tmp_path / "out", load_recipe())
    assert (again.already_complete, again.warnings) == (True, (warning,))


def test_half_of_the_weights_is_no_warning(tmp_path: Path) -> None:
    half = {"model.embed_tokens.weight": torch.randn(64, 128), "lm_head.weight": torch.randn(64, 128)}
    model = save_tensors(tmp_path / "m", dense(1) | half, LLAMA)
    assert quantize(str(model), tmp_path / "out", load_recipe()).warnings == ()


@pytest.mark.parametrize(("rows", "warns"), [(64, False), (65, True)])
def test_tied_head_counts_as_a_matrix_of_its_own(tmp_path: Path, rows: int, warns: bool) -> None:
    tensors = dense(1) | {"model.embed_tokens.weight": torch.randn(rows, 128).bfloat16()}
    del tensors["lm_head.weight"]
    model = save_tensors(tmp_path / "m", tensors, LLAMA | {"tie_word_embeddings": True})
    expected = f"Only {128 / (128 + 2 * rows):.1%} of the weights in matrices are coded. Largest kept: "
    found = quantize(str(model), tmp_path / "out", load_recipe()).warnings
    assert found == ((f"{expected}model.embed_tokens.weight (embedding stays exact).",) if warns else ())
    both = quantize(str(model), tmp_path / "both", load_recipe("head"))
    assert both.warnings == ()
