"""The benchmark of experts outside the GPU runs to its end anywhere, and keeps what it had when something failed."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cli.run import environment

ROOT = Path(__file__).parents[2]


def ran(folder: Path, out: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
    done = subprocess.run(
        [sys.executable, "scripts/bench_offload.py", folder, "--device", "cpu", "--json", out, "--tokens", "4",
         "--runs", "1", *options],
        capture_output=True, text=True, timeout=120, cwd=ROOT,
        env=environment(PYTHONPATH=f"{ROOT}:{ROOT / 'kernels'}"),
    )  # fmt: skip
    return done, json.loads(out.read_text())


def test_a_case_is_measured_with_each_routing(coded: Callable[[str], Path], tmp_path: Path) -> None:
    done, (slots,) = ran(coded("qwen3_moe"), tmp_path / "out.json", "--slots", "2", "--cases", "slots")
    assert done.returncode == 0, done.stderr
    assert (slots["slots"], slots["device_plans"]) == (2, False)
    for kind in ("own", "uniform", "sticky"):
        assert slots[kind]["tokens_a_second"] > 1
        assert 0 <= slots[kind]["hit_rate"] <= 1
        assert f"| slots | 2 | {kind} |" in done.stdout
    assert slots["uniform"]["token_bytes"] > 0
    assert slots["prefill_tokens_a_second"] > 1
    assert slots["host_peak_rss"] > 10**8


def test_a_case_that_fails_is_in_the_result_and_the_exit_code(tmp_path: Path) -> None:
    done, results = ran(tmp_path, tmp_path / "out.json", "--slots", "2", "--cases", "none")
    assert done.returncode == 1
    assert [(r["case"], r["failed"]) for r in results] == [("none", "exit code 1")]
