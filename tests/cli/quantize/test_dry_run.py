"""`--dry-run`: each tensor with its decision and reason, sizes, disk and memory, from headers alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.run_command import assert_refused, hlwq
from tests.support.builders import LLAMA, dense, save_tensors
from tests.support.files import read_tensors, tree

Family = Callable[[str], Path]


def plan(folder: Path, *options: str) -> dict[str, Any]:
    ran = hlwq("quantize", folder, "--dry-run", "--json", *options)
    assert ran.code == 0, ran
    document: dict[str, Any] = json.loads(ran.out)
    return document


def test_plan_has_a_line_for_every_tensor_with_its_bytes(family: Family, family_name: str) -> None:
    document = plan(family(family_name))
    assert sum(t["bytes"] for t in document["tensors"]) == document["output_bytes"]
    assert sum(r["bytes"] for r in document["roles"].values()) == document["output_bytes"]
    assert all(t["decision"] for t in document["tensors"])


def test_plan_equals_what_the_run_writes(family: Family, tmp_path: Path, family_name: str) -> None:
    document = plan(family(family_name))
    made = json.loads(hlwq("quantize", family(family_name), tmp_path / "out", "--json").out)
    assert made["bytes"] == document["output_bytes"]
    assert made["bytes"] == sum(len(t.data) for t in read_tensors(tmp_path / "out").values())
    for key in ("source_bytes", "bits_per_weight", "unquantized_share"):
        assert made[key] == document[key]


def test_plan_of_gemma4_counts_matrices_by_role(family: Family) -> None:
    roles = plan(family("gemma4"))["roles"]
    counts = {role: (n["coded"], n["kept"]) for role, n in roles.items()}
    assert counts["expert"] == (24, 0)
    assert counts["attention"] == (11, 0)
    assert counts["router"] == (0, 9)
    assert counts["vision"] == (15, 0)


def test_plan_states_its_rule(family: Family, tmp_path: Path) -> None:
    assert plan(family("llama"))["rule"] == "architecture file llama.yaml"
    unknown = save_tensors(tmp_path / "m", dense(), {"model_type": "nobody_knows_it"})
    assert plan(unknown)["rule"] == "general rule, by name and shape"
    assert "Roles by: general rule, by name and shape." in hlwq("quantize", unknown, "--dry-run").out


def test_plan_does_not_read_weights(tmp_path: Path) -> None:
    tensors = dense()
    tensors["model.layers.0.self_attn.q_proj.weight"][:] = float("nan")
    assert plan(save_tensors(tmp_path / "m", tensors, LLAMA))["output_bytes"] > 0


def test_plan_writes_nothing(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(family("qwen3"))
    monkeypatch.chdir(tmp_path)
    plan(family("qwen3"))
    hlwq("quantize", family("qwen3"), tmp_path / "out", "--dry-run")
    assert [*tmp_path.iterdir()] == []
    assert tree(family("qwen3")) == before


def test_tied_head_is_shown_as_dropped(tmp_path: Path) -> None:
    tensors = dense()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    document = plan(save_tensors(tmp_path / "m", tensors, LLAMA | {"tie_word_embeddings": True}))
    (head,) = [t for t in document["tensors"] if t["role"] == "head"]
    assert (head["bytes"], head["decision"]) == (0, "dropped: tied to model.embed_tokens.weight, never written")


@pytest.mark.parametrize("option", ["--tensor", "--include", "--exclude"])
def test_pattern_that_matches_nothing_exits_with_2(family: Family, tmp_path: Path, option: str) -> None:
    value = "q_prj=4" if option == "--tensor" else "q_prj"
    for where in ([tmp_path / "out"], ["--dry-run"]):
        ran = hlwq("quantize", family("qwen3"), *where, option, value)
        assert_refused(ran, 2, f"{option} 'q_prj' matches no tensor.", "--dry-run")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--delete-source"], "--delete-source needs a Hub id"),
        (["--base-model", "no repo"], "--base-model 'no repo' is not a valid repository id."),
        (["--device", "gpu"], "Unknown device 'gpu'."),
    ],
)
def test_dry_run_refuses_what_the_run_refuses(family: Family, tmp_path: Path, options: list[str], says: str) -> None:
    for where in ([tmp_path / "out"], ["--dry-run"]):
        assert_refused(hlwq("quantize", family("qwen3"), *where, *options), 2, says)
    assert not (tmp_path / "out").exists()


def test_trace_that_cannot_be_written_is_refused_before_any_work(family: Family, tmp_path: Path) -> None:
    ran = hlwq("quantize", family("qwen3"), tmp_path / "out", env={"HLWQ_TRACE": str(tmp_path / "no" / "trace.json")})
    assert_refused(ran, 3, "HLWQ_TRACE is", "its folder does not exist.")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bits", ["1", "9", "0", "-5"])
def test_unsupported_width_exits_with_2(family: Family, tmp_path: Path, bits: str) -> None:
    ran = hlwq("quantize", family("qwen3"), tmp_path / "out", "--bits", bits)
    assert (ran.code, ran.out) == (2, "")
    assert f"A code has 2 to 8 bits, not {bits}." in ran.err
    assert not (tmp_path / "out").exists()


def test_too_large_an_uncoded_fraction_exits_with_6_and_writes_nothing(family: Family, tmp_path: Path) -> None:
    share = plan(family("qwen3"))["unquantized_share"]
    above, below = f"{100 * share + 1:.2f}%", f"{share - 0.01:.4f}"
    ran = hlwq("quantize", family("qwen3"), tmp_path / "out", "--max-unquantized", below)
    assert_refused(ran, 6, f"{share:.1%} of the bytes would stay uncoded", "--dry-run")
    assert not (tmp_path / "out").exists()
    assert hlwq("quantize", family("qwen3"), tmp_path / "out", "--max-unquantized", above).code == 0


def test_dry_run_shows_the_plan_and_then_fails_the_gate(family: Family) -> None:
    ran = hlwq("quantize", family("qwen3"), "--dry-run", "--max-unquantized", "1%", "--json")
    assert ran.code == 6
    assert json.loads(ran.out)["unquantized_share"] > 0.01
    assert "more than the 1.0% allowed" in ran.err
