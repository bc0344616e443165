"""The benchmark of experts outside the GPU runs to its end anywhere, and keeps what it had when something failed."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts.bench import offload

ROOT = Path(__file__).parents[2]


def ran(folder: Path, out: Path, *options: str) -> tuple[int, list[dict[str, Any]]]:
    """The exit code, and the figures of each case; cases are processes."""
    arguments = [str(folder), "--device", "cpu", "--json", str(out), "--tokens", "4", "--runs", "1", *options]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'kernels'}")
        patch.setattr(sys, "argv", ["offload.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            offload.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code, json.loads(out.read_text())


@pytest.mark.alone
def test_a_case_is_measured_with_each_routing(
    coded: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, (slots,) = ran(coded("qwen3_moe"), tmp_path / "out.json", "--slots", "2", "--cases", "slots")
    assert code == 0
    shown = capsys.readouterr().out
    assert (slots["slots"], slots["device_plans"]) == (2, False)
    for kind in ("own", "uniform", "sticky"):
        assert slots[kind]["tokens_a_second"] > 1
        assert 0 <= slots[kind]["hit_rate"] <= 1
        assert f"| slots | 2 | {kind} |" in shown
    assert slots["uniform"]["token_bytes"] > 0
    assert slots["prefill_tokens_a_second"] > 1
    assert slots["host_peak_rss"] > 10**8


def test_cases_that_fail_are_in_the_result_and_the_exit_code(tmp_path: Path) -> None:
    options = ("--slots", "2", "--timeout", "0.1")
    code, results = ran(tmp_path, tmp_path / "out.json", *options, "--cases", "none", "resident")
    assert code == 1
    assert [(r["case"], r["failed"]) for r in results] == [("none", "exit code -9"), ("resident", "exit code -9")]
