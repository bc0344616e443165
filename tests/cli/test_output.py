"""stdout carries only the result; --json is one document, -q one line, and there is no colour without a terminal."""

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hlwq_cli.measure.speed import Rate
from hlwq_cli.ui.sink import Format, Sink
from tests.cli.run_command import CommandResult, hlwq, hlwq_process
from tests.support.builders import tiny_llama

ANSI = re.compile(r"\x1b")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "m")


@pytest.fixture
def every_result(model: Path, tmp_path: Path) -> Callable[..., dict[str, CommandResult]]:
    """Run each command that prints a result, in one format."""

    def run(*options: str) -> dict[str, CommandResult]:
        out, name = tmp_path / "out", "".join(options)
        return {
            "plan": hlwq("quantize", model, "--dry-run", *options),
            "quantize": hlwq("quantize", model, out, *options),
            "inspect": hlwq("inspect", out, *options),
            "verify": hlwq("inspect", out, "--verify", *options),
            "diff": hlwq("inspect", out, "--diff", out, *options),
            "export": hlwq("export", out, tmp_path / f"plain{name}", *options),
        }

    return run


def test_json_is_one_document_with_schema_and_command(every_result: Callable[..., dict[str, CommandResult]]) -> None:
    for command, ran in every_result("--json").items():
        document: dict[str, Any] = json.loads(ran.out)
        assert (ran.code, document["schema"], document["command"]) == (0, 1, command)


def test_format_json_and_json_are_the_same(model: Path) -> None:
    short, long = (hlwq("quantize", model, "--dry-run", *o) for o in (["--json"], ["--format", "json"]))
    assert short.out == long.out


def test_quiet_is_one_line_on_stdout_and_nothing_on_stderr(
    every_result: Callable[..., dict[str, CommandResult]],
) -> None:
    for command, ran in every_result("-q").items():
        assert (command, ran.code, ran.err, ran.out.count("\n")) == (command, 0, "", 1)


def test_quiet_lines_are_what_a_script_wants(model: Path, tmp_path: Path) -> None:
    out, plain = tmp_path / "out", tmp_path / "plain"
    plan = json.loads(hlwq("quantize", model, "--dry-run", "--json").out)
    assert hlwq("quantize", model, "--dry-run", "-q").out == f"{plan['output_bytes']}\n"
    assert hlwq("quantize", model, out, "-q").out == f"{out}\n"
    assert hlwq("inspect", out, "-q").out == "5.25\n"
    assert hlwq("inspect", out, "--verify", "-q").out == "ok\n"
    assert hlwq("inspect", out, "--diff", out, "-q").out == "same\n"
    assert hlwq("export", out, plain, "-q").out == f"{plain}\n"


@pytest.mark.parametrize("options", [[], ["--json"], ["-q"]])
def test_no_escape_codes_without_a_terminal(
    every_result: Callable[..., dict[str, CommandResult]], options: list[str]
) -> None:
    for ran in every_result(*options).values():
        assert not ANSI.search(ran.out + ran.err)


def test_brackets_in_names_are_shown(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "a[bold]b[0]"
    assert str(out) in hlwq("quantize", model, out).out
    (out / "hlwq_bench.json").write_text('{"checkpoint": ""}')
    assert f"{out / 'README.md'}: " in hlwq("card", out).out


def test_closed_pipe_is_not_an_error(model: Path, tmp_path: Path) -> None:
    for options in ([], ["--json"], ["-q"]):
        read, write = os.pipe()
        os.close(read)
        ran = hlwq_process("quantize", model, "--dry-run", *options, stdout=write)
        os.close(write)
        assert (ran.code, ran.err) == (0, "")


def test_numbers_that_are_not_finite_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    rate = Rate(math.nan, math.inf, 1)
    Sink(Format.json).result("bench", {"rate": rate, "rates": [-math.inf, 2.5]}, lambda console: None, "")
    found = json.loads(capsys.readouterr().out)
    assert (found["rate"], found["rates"]) == ({"mean": None, "deviation": None, "runs": 1}, [None, 2.5])


def test_one_line_for_every_shard_on_stderr_without_a_terminal(model: Path, tmp_path: Path) -> None:
    ran = hlwq_process("quantize", model, tmp_path / "out", "--max-shard-size", "20KB")
    shards = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    lines = ran.err.splitlines()
    assert len(shards) > 2
    assert sorted(line.split()[0] for line in lines) == shards  # shards may finish in any order
    assert all(re.fullmatch(r"\S+ \(\d+/\d+\): +\d+ ?%, [\d.]+ [kMG]?B/s", line) for line in lines), lines
    assert lines[-1].split(": ")[1].startswith("100%")
    assert not ANSI.search(ran.out + ran.err)


@pytest.mark.parametrize("wide", ["40", "200"])
def test_long_paths_are_not_broken_over_lines_without_a_terminal(tmp_path: Path, wide: str) -> None:
    out = tmp_path / ("a-long-folder-name-" * 8) / "out"
    model = tiny_llama(tmp_path / "m")
    ran = hlwq("quantize", model, out, env={"COLUMNS": wide})
    assert f"{out}: " in ran.out
    assert f"hlwq inspect {out} --verify\n" in ran.out


def test_result_states_sizes_bits_uncoded_fraction_and_next_command(model: Path, tmp_path: Path) -> None:
    ran = hlwq("quantize", model, tmp_path / "out")
    text = " ".join(ran.out.split())
    assert "86.53 kB became 42.50 kB; 2 tensors coded at 5.250 bits per weight, 4 kept" in text
    assert "24.3% of the bytes stayed uncoded." in text


def test_uncoded_fraction_is_in_every_form_of_the_result(model: Path, tmp_path: Path) -> None:
    share = (2 * 40 * 128 + 2 * 128) / (2 * 40 * 128 + 2 * 128 + 2 * 128 * 128)
    plan = json.loads(hlwq("quantize", model, "--dry-run", "--json").out)
    made = json.loads(hlwq("quantize", model, tmp_path / "out", "--json").out)
    assert plan["unquantized_share"] == pytest.approx(share)
    assert made["unquantized_share"] == pytest.approx(share)
    assert "24.3% of the bytes stay uncoded" in " ".join(hlwq("quantize", model, "--dry-run").out.split())


@pytest.mark.parametrize(
    "arguments",
    [["quantize"], ["quantize", "m", "--bits", "five"], ["quantize", "m", "--threads", "0"], ["inspect"], ["export"],
     ["unknown"], ["quantize", "m", "--no-such-option"], ["quantize", "m", "--format", "xml"]],
)  # fmt: skip
def test_usage_errors_exit_with_2_and_leave_stdout_empty(arguments: list[str]) -> None:
    ran = hlwq(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err


@pytest.mark.parametrize("option", ["--max-shard-size", "--max-unquantized"])
@pytest.mark.parametrize("value", ["", "big", "-1", "-5%", "1e400GB", "nan", "5 potatoes"])
def test_invalid_sizes_and_fractions_exit_with_2(model: Path, option: str, value: str) -> None:
    ran = hlwq("quantize", model, "--dry-run", f"{option}={value}")
    assert (ran.code, ran.out) == (2, "")
    assert "Unexpected" not in ran.err


def test_traceback_is_shown_only_with_debug(tmp_path: Path) -> None:
    quiet = hlwq("inspect", tmp_path / "nowhere")
    loud = hlwq("inspect", tmp_path / "nowhere", env={"HLWQ_DEBUG": "1"})
    assert "Traceback" not in quiet.err
    assert "Traceback (most recent call last)" in loud.err
    assert loud.err.endswith(quiet.err)
    assert (loud.code, loud.out) == (3, "")


def test_default_output_folder_is_named_after_model_and_bits(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert hlwq("quantize", model, "--bits", "4", "-q").out == "m-HLWQ-Q4\n"
    assert (tmp_path / "m-HLWQ-Q4" / "hlwq_manifest.json").is_file()
