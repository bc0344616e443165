"""A terminal shows a progress bar; output to a pipe stays plain."""

import os
import pty
import threading
from pathlib import Path

import pytest

from tests.cli.run_command import environment, start
from tests.support.builders import LLAMA, dense, save_tensors


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tensors(tmp_path_factory.mktemp("terminal") / "m", dense(8, width=1024), LLAMA)


def on_terminal(*arguments: str | Path, **env: str) -> tuple[int, str, str]:
    """Return exit code, stdout through a pipe, and stderr on a pseudo-terminal."""
    master, slave = pty.openpty()
    shown = bytearray()

    def read() -> None:
        try:
            while piece := os.read(master, 4096):
                shown.extend(piece)
        except OSError:  # the other end is closed
            pass

    thread = threading.Thread(target=read)
    thread.start()
    process = start(*arguments, env=environment(TERM="xterm-256color", COLUMNS="100", **env), stderr=slave)
    os.close(slave)
    out, _ = process.communicate(timeout=120)
    thread.join()
    os.close(master)
    return process.wait(), out, shown.decode()


def test_quantize_shows_a_bar_with_tensor_percentage_speed_and_time(model: Path, tmp_path: Path) -> None:
    code, out, shown = on_terminal("quantize", model, tmp_path / "out", "--threads", "1", "--json")
    assert code == 0
    assert out.startswith("{")
    assert "\x1b" not in out
    assert "━" in shown
    assert "model.layers." in shown
    for part in ("%", "B/s", "0:00:0"):
        assert part in shown


def test_quiet_shows_no_bar(model: Path, tmp_path: Path) -> None:
    code, out, shown = on_terminal("quantize", model, tmp_path / "out", "-q")
    assert (code, out, shown) == (0, f"{tmp_path / 'out'}\n", "")


def test_no_color_switches_colours_off(model: Path, tmp_path: Path) -> None:
    _, _, shown = on_terminal("quantize", model, tmp_path / "out", NO_COLOR="1")
    assert "\x1b[3" not in shown
    assert "\x1b[38" not in shown
