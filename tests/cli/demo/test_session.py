"""A visitor's conversation: its limits, and prompts whose answers never start. On the sample, without a server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from hlwq_cli.errors import HlwqError, UsageError
from hlwq_cli.runtime import HLWQModel
from hlwq_cli.runtime.chat import TemplateProcess
from hlwq_cli.ui.demo.exchange import MAX_SYSTEM_CHARACTERS, Settings
from hlwq_cli.ui.demo.prepare import TimeLimit
from hlwq_cli.ui.demo.session import MAX_CHARACTERS, Room, Session

LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
SHORT = Settings(max_new_tokens=4)


@pytest.fixture(scope="module")
def model() -> HLWQModel:
    torch.set_num_threads(1)
    return HLWQModel.from_pretrained("sample", dtype="float32", device="cpu")


@pytest.fixture
def room(model: HLWQModel, tmp_path: Path) -> Room:
    return Room([model], tmp_path, 1_000_000)


def answered(session: Session, room: Room, settings: Settings = SHORT) -> str:
    for _ in session.answer(room, settings):
        pass
    reply = session.exchanges[-1].replies[-1]
    assert reply.end, "the answer never ended"
    return reply.problem or reply.text


@pytest.fixture
def picture(tmp_path: Path) -> Callable[[int, int], Path]:
    def make(width: int, height: int) -> Path:
        path = tmp_path / f"{width}.png"
        Image.new("1", (width, height)).save(path)
        return path

    return make


def test_prompt_whose_answer_never_started_does_not_block_the_next(room: Room) -> None:
    session = Session()
    session.ask("We", [], room)
    session.ask("We are", [], room)
    assert session.exchanges[0].replies[0].end == "stopped"
    assert answered(session, room) != ""


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"system": "x" * (MAX_SYSTEM_CHARACTERS + 1)}, "system prompt has"),
        ({"temperature": float("nan")}, "must be numbers"),
        ({"top_p": float("inf")}, "must be numbers"),
        ({"seed": 2**64}, "seed is above"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Settings(**settings)  # type: ignore[arg-type]


def test_characters_of_a_conversation_are_bounded(room: Room) -> None:
    session = Session()
    session.ask("x" * (MAX_CHARACTERS - 100), [], room)
    session.exchanges[-1].replies[0].text = "y" * 99
    with pytest.raises(UsageError, match="conversation has more than 1,000,000 characters"):
        session.ask("We", [], room)
    session.ask("W", [], room)


def test_pixels_of_a_message_and_a_conversation_are_bounded(
    model: HLWQModel, tmp_path: Path, picture: Callable[[int, int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hlwq_cli.ui.demo.session.MAX_MESSAGE_PIXELS", 32_000)
    monkeypatch.setattr("hlwq_cli.ui.demo.session.MAX_CONVERSATION_PIXELS", 64_000)
    room, session = Room([model], tmp_path / "kept", 100_000_000), Session()
    four = [picture(200 - i, 200) for i in range(4)]
    session.ask("What?", four, room)
    assert 31_000 < session.exchanges[-1].pixels <= 32_000
    session.ask("What?", four[:1], room)
    with pytest.raises(UsageError, match="over 0 megapixels"):
        session.ask("What?", four, room)
    assert len([*(tmp_path / "kept").iterdir()]) == 5  # those of the refused message are gone
    session.clear()
    assert [*(tmp_path / "kept").iterdir()] == []


def test_hostile_template_holds_nobody(model: HLWQModel, tmp_path: Path) -> None:
    """Visitors of another model of the same server are answered meanwhile, although they share its queue."""
    import copy

    hostile = copy.copy(model)
    hostile.processor = copy.copy(model.processor)
    hostile.processor.chat_template = LOOPS
    hostile.template_process = TemplateProcess(seconds=1)
    theirs = Room([hostile], tmp_path, 1)
    mine = Room([model], tmp_path, 1, queue=theirs.queue)
    one, two = Session(), Session()
    one.ask("We", [], theirs)
    thread = threading.Thread(target=answered, args=(one, theirs))
    thread.start()
    two.ask("We", [], mine)
    assert answered(two, mine) != ""
    thread.join()
    assert "takes more than 1 seconds" in one.exchanges[-1].replies[0].problem
    hostile.template_process.close()


def test_time_limit_gives_up_and_refuses_while_threads_are_stuck() -> None:
    limit, stuck = TimeLimit(seconds=0.05, at_once=2), threading.Event()
    for _ in range(2):
        with pytest.raises(HlwqError, match="takes more than"):
            limit.run(stuck.wait)
    with pytest.raises(HlwqError, match="server is busy"):
        limit.run(lambda: True)
    stuck.set()
    while True:  # until the stuck threads have ended
        try:
            assert limit.run(lambda: 7) == 7
            break
        except HlwqError:
            time.sleep(0.01)


def test_time_limit_passes_errors_on() -> None:
    def fail() -> None:
        raise UsageError("No.")

    with pytest.raises(UsageError, match=r"No\."):
        TimeLimit().run(fail)
