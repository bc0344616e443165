"""A text is cut into windows exactly as each protocol says."""

import pytest

from hlwq_cli.errors import UsageError
from hlwq_cli.measure.text import Text
from hlwq_cli.measure.windows import make_windows

from .fakes import Letters

TEXT = Text("letters", "abcdefghijklmnopqrst")  # ids 3 .. 22


def test_paper_with_bos_puts_it_before_each_window() -> None:
    w = make_windows(TEXT, Letters(True), "paper", 6)
    assert w.ids.tolist() == [[1, *range(k, k + 5)] for k in (3, 8, 13, 18)]
    assert (w.first, w.protocol.scored, w.protocol.windows, w.protocol.bos) == (1, 5, 4, True)


def test_paper_without_bos_scores_all_but_the_first() -> None:
    w = make_windows(TEXT, Letters(False), "paper", 6)
    assert w.ids.tolist() == [list(range(k, k + 6)) for k in (3, 9, 15)]
    assert (w.first, w.protocol.scored, w.protocol.windows, w.protocol.bos) == (1, 5, 3, False)


def test_llama_cpp_with_bos_replaces_the_first_token_of_each_window() -> None:
    w = make_windows(TEXT, Letters(True), "llama.cpp", 6)
    assert w.ids.tolist() == [[1, 3, 4, 5, 6, 7], [1, 9, 10, 11, 12, 13], [1, 15, 16, 17, 18, 19]]
    assert w.protocol.bos


def test_llama_cpp_without_bos_leaves_tokens_alone() -> None:
    w = make_windows(TEXT, Letters(False), "llama.cpp", 6)
    assert w.ids.tolist() == [list(range(k, k + 6)) for k in (3, 9, 15)]
    assert not w.protocol.bos


@pytest.mark.parametrize(("name", "scored"), [("paper", 2047), ("llama.cpp", 255)])
def test_windows_have_the_protocols_default_size(name: str, scored: int) -> None:
    w = make_windows(Text("long", "abcdefgh" * 600), Letters(True), name)  # type: ignore[arg-type]
    assert w.ids.shape[1] == {"paper": 2048, "llama.cpp": 512}[name]
    assert w.protocol.scored == scored == w.ids.shape[1] - w.first


@pytest.mark.parametrize("name", ["paper", "llama.cpp"])
def test_bos_comes_exactly_once_a_window(name: str) -> None:
    w = make_windows(Text("long", "abcdefgh" * 50), Letters(True), name, 16)  # type: ignore[arg-type]
    assert ((w.ids == 1).sum(dim=1) == 1).all()
    assert (w.ids[:, 0] == 1).all()


def test_a_limit_takes_the_first_windows() -> None:
    all_of_them = make_windows(TEXT, Letters(False), "paper", 6)
    w = make_windows(TEXT, Letters(False), "paper", 6, 2)
    assert w.ids.tolist() == all_of_them.ids[:2].tolist()
    assert w.protocol.windows == 2


def test_protocol_line_states_all_settings() -> None:
    line = make_windows(TEXT, Letters(True), "paper", 6).protocol.line
    for part in ("paper", "letters", TEXT.sha256[:12], "4 windows of 6", "5 scored", "BOS once a window"):
        assert part in line
    assert "no BOS" in make_windows(TEXT, Letters(False), "paper", 6).protocol.line


@pytest.mark.parametrize("name", ["paper", "llama.cpp"])
@pytest.mark.parametrize("bos", [True, False])
def test_a_text_shorter_than_a_window_is_refused(name: str, bos: bool) -> None:
    with pytest.raises(UsageError, match="letters has 2"):
        make_windows(TEXT, Letters(bos), name, 64)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 3, -5])
def test_a_tiny_window_is_refused(size: int) -> None:
    with pytest.raises(UsageError):
        make_windows(TEXT, Letters(True), "paper", size)


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(UsageError, match="gpt2"):
        make_windows(TEXT, Letters(True), "gpt2")  # type: ignore[arg-type]
