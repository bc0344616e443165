"""The check of model families: its verdicts are right, also where something is wrong."""

import re
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scripts.checks.families import choose
from scripts.checks.family import sweep as family_sweep
from scripts.checks.family.original import NotRunError, make_original, relative_difference
from scripts.checks.family.page import Sweep, load, page, save
from scripts.checks.family.reasons import in_words
from scripts.checks.family.steps import MADE, Row, check_family, far_weight, steps
from scripts.checks.family.sweep import TOO_SLOW, sweep
from scripts.checks.family.tiny_models import Family, families

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, about the tiny models
LLAMA = Family("llama", "LlamaForCausalLM", "causal")
WEIGHTS = "model.safetensors"
FIRST, SECOND = (f"model.layers.{i}.self_attn.q_proj" for i in (0, 1))


def swap_codes(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors[f"{FIRST}.codes"], tensors[f"{SECOND}.codes"] = tensors[f"{SECOND}.codes"], tensors[f"{FIRST}.codes"]
    save_file(tensors, folder / WEIGHTS, {"format": "pt", "format_version": "1"})


def swap_norms(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    names = [name for name in tensors if name.endswith("input_layernorm.weight")]
    tensors[names[0]], tensors[names[1]] = tensors[names[1]], tensors[names[0]]
    save_file(tensors, folder / WEIGHTS, {"format": "pt", "format_version": "1"})


def lose_scales(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors[f"{FIRST}.scales"]
    save_file(tensors, folder / WEIGHTS, {"format": "pt", "format_version": "1"})


def test_a_right_checkpoint_is_equal_in_every_way(tmp_path: Path) -> None:
    row = check_family(LLAMA, tmp_path)
    assert (row.verdict, row.dtype, row.loads, row.generates, row.difference) == ("equal", "bf16", True, "yes", 0.0)
    assert row.coded_share == 0.75
    assert row.kept == ""
    assert not row.failed


@pytest.mark.parametrize(
    ("damage", "loads", "verdict"),
    [
        (swap_codes, True, f"WRONG: outputs differ by .*; {FIRST}.weight differs"),
        (swap_norms, True, r"WRONG: outputs differ by .*; model.layers.0.input_layernorm.weight differs"),
        (lose_scales, False, f"error: does not load: CorruptError: .*{FIRST}.scales"),
    ],
)
def test_a_damaged_checkpoint_is_found(
    damage: Callable[[Path], None], loads: bool, verdict: str, tmp_path: Path
) -> None:
    row = check_family(LLAMA, tmp_path, damage=damage)
    assert (row.loads, row.failed) == (loads, True)
    assert re.match(verdict, row.verdict)


def test_what_quantize_refuses_before_any_work_is_refused(tmp_path: Path) -> None:
    original = make_original(LLAMA, tmp_path / "source")
    (tmp_path / "source" / WEIGHTS).write_bytes(b"no header")
    row = steps(Row(LLAMA, ""), original, tmp_path, None)
    assert row.verdict.startswith("refused: ")
    assert row.verdict.endswith("(exit 1)")
    assert not row.failed


def test_an_export_that_is_far_from_the_original_is_found(tmp_path: Path) -> None:
    original = make_original(LLAMA, tmp_path / "source")
    assert far_weight(original.model, original.model) == ""
    other = original.load(tmp_path / "source")
    other.model.layers[1].mlp.up_proj.weight.data = other.model.layers[1].mlp.up_proj.weight.flip(0)
    assert far_weight(original.model, other) == "model.layers.1.mlp.up_proj.weight"


def test_a_model_that_transformers_does_not_run_is_not_tried(tmp_path: Path) -> None:
    with pytest.raises(NotRunError, match=r"is not built: .*transformers has no NoSuchModel"):
        check_family(Family("llama", "NoSuchModel", "causal"), tmp_path)


def test_a_process_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(family: Family, folder: Path) -> None:
        (folder / MADE).touch()
        time.sleep(60)

    monkeypatch.setattr(family_sweep, "check_family", lambda *arguments: time.sleep(60))
    assert dict(sweep([LLAMA], 1, seconds=0.5)) == {LLAMA: TOO_SLOW}
    monkeypatch.setattr(family_sweep, "check_family", made)
    row = dict(sweep([LLAMA], 1, seconds=2))[LLAMA]
    assert isinstance(row, Row)
    assert row.verdict == "error: the time limit was reached"


def test_outputs_differ_where_shapes_or_nans_do() -> None:
    one, nan = torch.ones(3), torch.tensor([1.0, float("nan"), 1.0])
    assert relative_difference([one], [one]) == relative_difference([nan], [nan]) == 0.0
    assert relative_difference([one], [one * 2]) == 0.5
    assert relative_difference([one], [nan]) == relative_difference([nan], [one]) == float("inf")
    assert relative_difference([one], [one[:2]]) == relative_difference([one], []) == float("inf")


def test_a_sample_is_a_fixed_spread_over_all_auto_classes() -> None:
    chosen = choose([], 25)
    assert chosen == choose([], 25)
    assert len(set(chosen)) == 25
    assert {family.auto_class for family in chosen} == {"causal", "image-text", "seq2seq", "masked", "base"}
    assert len(list(families())) > 300


def test_a_page_lists_what_failed_first_and_what_was_not_tried() -> None:
    wrong = Row(Family("zoo", "ZooModel", "base"), "WRONG: outputs differ by 1")
    other = (Family("gpt2", "GPT2LMHeadModel", "causal"), "is not built: at 62 million parameters it is too large")
    result = Sweep([Row(LLAMA, "equal", coded_share=0.75, difference=0.0), wrong], [other])
    lines = page(result, "python x").splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    words = "is too large at the smallest sizes that build"
    assert rows[1].startswith("| zoo | ZooModel | base | - |")
    assert rows[2].startswith("| llama | LlamaForCausalLM | causal | 75% | - | 0 | - | equal |")
    assert f"| {words} | 1 |" in rows
    assert lines[-1] == f"| gpt2 | GPT2LMHeadModel | {words} | {other[1]} |"


def test_a_resumed_sweep_keeps_what_did_not_fail_and_checks_the_rest(tmp_path: Path) -> None:
    other, broken = Family("gpt2", "GPT2LMHeadModel", "causal"), Family("zoo", "ZooModel", "base")
    done = Row(LLAMA, "equal", "bf16", 0.75, "", "", True, 0.0, "yes", 1.5, "2026-01-31")
    save(Sweep([done, Row(broken, "error: x")], [(other, "is not built")]), tmp_path / "families", "python x")
    resumed = load(tmp_path / "families")
    assert (resumed.rows, resumed.skipped) == ([done], [(other, "is not built")])
    assert resumed.without_done([LLAMA, other, broken]) == [other, broken]
    assert load(tmp_path / "none").rows == []


def test_a_new_answer_takes_the_place_of_the_earlier_one() -> None:
    result = Sweep([Row(LLAMA, "error: x")])
    result.put(LLAMA, "is not built")
    assert (result.rows, result.skipped) == ([], [(LLAMA, "is not built")])
    result.put(LLAMA, Row(LLAMA, "equal"))
    assert [(row.verdict, row.measured) for row in result.rows] == [("equal", date.today().isoformat())]
    assert result.skipped == []


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("is not built: ImportError: X requires the timm library but it", "needs timm, which is absent"),
        ("is not built: ValueError: x", "its settings depend on each other: no small sizes that are known here fit"),
        ("does not run: no inputs are known", "needs inputs of its own"),
        ("does not run: KeyError: 2", "fails with the inputs that are known here"),
        ("unheard of", "for another reason"),
    ],
)
def test_reasons_are_put_in_words(reason: str, words: str) -> None:
    assert in_words(reason) == words
