"""Every script answers --help without a GPU, and no script hides a module that others import."""

import importlib.util
import runpy
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
FILES = sorted(path for path in SCRIPTS.rglob("*.py") if path.name != "__init__.py")
PROGRAMS = [path for path in FILES if '__name__ == "__main__"' in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("script", PROGRAMS, ids=lambda path: str(path.relative_to(SCRIPTS)))
def test_a_script_prints_its_usage(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert f"usage: {script.name}" in printed
    assert f"python scripts/{script.relative_to(SCRIPTS)}" in printed


def test_no_script_has_the_name_of_a_module_that_others_import() -> None:
    """A script's folder is first on the path when it runs, so that its neighbours would be found instead."""
    hidden = [path for path in FILES if importlib.util.find_spec(path.stem) is not None]
    assert hidden == []
