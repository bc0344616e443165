"""`inspect` shows what is in a result; `--diff` shows where two differ, with exit code 6."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.run_command import assert_refused, hlwq
from tests.support.builders import LLAMA, dense, save_tensors
from tests.support.files import read_json, read_tensors

Family = Callable[[str], Path]


def inspected(folder: Path) -> dict[str, Any]:
    ran = hlwq("inspect", folder, "--json")
    assert ran.code == 0, ran
    document: dict[str, Any] = json.loads(ran.out)
    return document


def test_inspect_lists_every_tensor_with_role_shape_and_bytes(family: Family, coded: Family, family_name: str) -> None:
    report, stored = inspected(coded(family_name)), read_tensors(coded(family_name))
    sources = [s for t in report["coded"] for s in t["sources"]] + [k["name"] for k in report["kept"]]
    assert sorted(sources) == sorted(read_tensors(family(family_name)))
    assert report["coded_bytes"] + report["kept_bytes"] == sum(len(t.data) for t in stored.values())
    assert all(t["role"] and t["shape"] and t["bits"] == 5 for t in report["coded"])


def test_inspect_gives_bits_per_weight_share_and_histogram(coded: Family) -> None:
    report = inspected(coded("gemma4"))
    weights: Counter[int] = Counter()
    for t in report["coded"]:
        product = 1
        for d in t["shape"]:
            product *= d
        weights[t["bits"]] += product
    assert report["bits"] == {"5": weights[5]}
    assert report["bits_per_weight"] == pytest.approx(8 * report["coded_bytes"] / weights[5], abs=1e-4)
    assert report["kept_share"] == pytest.approx(report["kept_bytes"] / report["source_bytes"])
    assert (report["block_size"], report["scale"]) == (64, "log8")


def test_inspect_for_people_names_matrices_source_rule_and_share(coded: Family) -> None:
    text = hlwq("inspect", coded("gemma4")).out
    assert "Made from gemma4; roles by architecture file gemma4.yaml." in text
    for role in ("11 attention", "9 mlp", "24 expert", "15 vision", "1 projector"):
        assert role in text
    assert "bits per weight in blocks of 64, log8 scales" in text


def test_inspect_for_people_has_a_line_for_every_tensor(coded: Family) -> None:
    text = hlwq("inspect", coded("gemma4")).out
    manifest = read_json(coded("gemma4") / "hlwq_manifest.json")
    names = [t["name"] for t in (*manifest["coded"], *manifest["kept"])]
    assert [n for n in names if n not in text] == []


def test_revision_of_a_folder_is_refused(coded: Family) -> None:
    assert_refused(hlwq("inspect", coded("qwen3"), "--revision", "main"), 2, "--revision")


def test_verify_and_diff_cannot_be_used_together(coded: Family) -> None:
    ran = hlwq("inspect", coded("qwen3"), "--verify", "--diff", coded("qwen3"))
    assert_refused(ran, 2, "--verify and --diff cannot be used together.")


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that quantizes a small checkpoint: `made(name, tensors, *options)`."""

    def make(name: str, tensors: dict[str, Any], *options: str) -> Path:
        source = save_tensors(tmp_path / f"{name}-source", tensors, LLAMA)
        assert hlwq("quantize", source, tmp_path / name, *options).code == 0
        return tmp_path / name

    return make


def differences(a: Path, b: Path) -> tuple[int, dict[str, Any]]:
    ran = hlwq("inspect", a, "--diff", b, "--json")
    return ran.code, json.loads(ran.out)


Q = "model.layers.0.self_attn.q_proj"


def test_results_of_the_same_source_are_the_same_whatever_their_files(made: Callable[..., Path]) -> None:
    a, b = made("a", dense(2)), made("b", dense(2), "--max-shard-size", "20KB")
    code, report = differences(a, b)
    assert code == 0
    assert report["same"] == 6
    assert report["recoded"] == report["changed"] == report["only_first"] == report["only_second"] == []
    assert "6 tensors are the same.\n" in hlwq("inspect", a, "--diff", b).out


def test_tensor_coded_differently_is_named_with_both_widths(made: Callable[..., Path]) -> None:
    code, report = differences(made("a", dense()), made("b", dense(), "--bits", "4"))
    assert code == 6
    assert report["recoded"] == [[Q, "5 bits [128, 128] / 4 bits [128, 128]"]]
    assert report["same"] == 3


def test_tensor_coded_in_one_and_kept_in_the_other_is_one_difference(made: Callable[..., Path]) -> None:
    code, report = differences(made("a", dense(2)), made("b", dense(2), "--exclude", r"layers\.0\."))
    assert code == 6
    assert report["recoded"] == [[Q, "5 bits [128, 128] / BF16 [128, 128]"]]
    assert report["only_first"] == report["only_second"] == []


def test_other_weights_are_changed_tensors(made: Callable[..., Path]) -> None:
    other = dense()
    other["model.layers.0.self_attn.q_proj.weight"] *= 1.5
    other["lm_head.weight"][0, 0] += 1
    code, report = differences(made("a", dense()), made("b", other))
    assert code == 6
    assert sorted(report["changed"]) == ["lm_head", Q]


def test_same_bits_by_another_encoder_are_changed_tensors(made: Callable[..., Path]) -> None:
    code, report = differences(made("a", dense()), made("b", dense(), "--effort", "fast"))
    assert (code, report["changed"], report["recoded"]) == (6, [Q], [])


def test_same_bits_in_another_scheme_are_coded_differently(made: Callable[..., Path]) -> None:
    code, report = differences(made("a", dense()), made("b", dense(), "--recipe", "classic"))
    assert (code, [name for name, _ in report["recoded"]]) == (6, [Q])


def test_tensors_of_one_side_only_are_listed(made: Callable[..., Path]) -> None:
    code, report = differences(made("a", dense(1)), made("b", dense(2)))
    assert code == 6
    assert report["only_first"] == []
    assert sorted(report["only_second"]) == ["model.layers.1.input_layernorm", "model.layers.1.self_attn.q_proj"]


def test_differences_are_on_stdout_and_the_verdict_is_on_stderr(made: Callable[..., Path]) -> None:
    ran = hlwq("inspect", made("a", dense()), "--diff", made("b", dense(), "--bits", "4"))
    assert ran.code == 6
    assert f"coded differently: {Q}: 5 bits [128, 128] / 4 bits [128, 128]\n" in ran.out
    assert ran.err == "Error: The checkpoints differ.\n"


def test_diff_with_an_ordinary_folder_exits_with_3(coded: Family, family: Family, tmp_path: Path) -> None:
    assert_refused(hlwq("inspect", coded("qwen3"), "--diff", tmp_path / "nowhere"), 3, "There is no folder")
    assert_refused(hlwq("inspect", coded("qwen3"), "--diff", family("qwen3")), 3, "is not an HLWQ checkpoint")
