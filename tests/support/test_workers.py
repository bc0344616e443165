"""What workers share is made once and complete; long files are begun first."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.workers import LONG, made_once, rank


def test_a_folder_is_made_by_the_first_who_asks(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        folder.mkdir()
        (folder / "text").write_text("whole")

    with ThreadPoolExecutor(8) as pool:
        folders = [*pool.map(lambda _: made_once(tmp_path / "all" / "one", make), range(8))]
    assert len(made) == 1
    assert folders == [tmp_path / "all" / "one"] * 8
    assert (folders[0] / "text").read_text() == "whole"


def test_a_folder_whose_making_failed_is_made_again(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        folder.mkdir()
        raise ValueError

    for _ in range(2):
        with pytest.raises(ValueError, match=r"^$"):
            made_once(tmp_path / "one", fail)
    assert made_once(tmp_path / "one", Path.mkdir).is_dir()


def test_long_files_exist_and_are_ranked_before_others() -> None:
    root = Path(__file__).parents[2]
    assert [path for path in LONG if not (root / path).exists()] == []
    assert rank("tests/cli/demo/test_chat.py::x") < rank("tests/cli/test_help.py::x") < rank("tests/test_docs.py::x")
