"""Ends of `hlwq demo`: its temporary folder goes, and a password never appears."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hlwq_cli.ui.demo.serve import ended_by_signals
from tests.cli.run_command import hlwq
from tests.support.builders import tiny_llama
from tests.support.signal_on_open import SignalOnOpen

PRESS_CTRL_C = """
import sys
module = sys.argv.pop()
class Press:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Press())
sys.argv = ["hlwq", "demo", "sample", *sys.argv[1:]]
from hlwq_cli.main import main
main()
"""


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")
    return tmp_path


@pytest.fixture(scope="module")
def on_open() -> SignalOnOpen:
    return SignalOnOpen()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGHUP, 129), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_while_a_model_is_loaded_leaves_no_temporary_folder(
    scratch: Path, on_open: SignalOnOpen, number: signal.Signals, code: int
) -> None:
    before = {n: signal.getsignal(n) for n in (signal.SIGHUP, signal.SIGTERM)}
    model = tiny_llama(scratch / "model")
    on_open.arm(str(model), number)
    ran = hlwq("demo", model, "--device", "cpu")
    assert not on_open.is_armed
    assert (ran.code, ran.out) == (code, ""), ran.err
    assert [*scratch.glob("hlwq-demo-*")] == []
    assert {n: signal.getsignal(n) for n in before} == before


def test_hangup_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_by_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("module", "login"),
    [
        ("hlwq_cli.runtime.kv", ["--auth", "ann:TOPSECRET"]),
        ("hlwq_cli.commands.demo", ["--auth=ann:TOPSECRET"]),
    ],
)
def test_password_is_not_printed_after_ctrl_c(module: str, login: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRESS_CTRL_C, *login, module], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 130, done.stderr
    assert "TOPSECRET" not in done.stdout + done.stderr
