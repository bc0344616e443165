"""hlwq chat on a pseudo-terminal and through pipes: history, pictures, commands, and what Ctrl-C and Ctrl-D do."""

import os
import pty
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from hlwq_cli.runtime import HLWQModel, Turn
from hlwq_cli.samples import resolve_model

from .run_command import environment, hlwq, start

SHORT = ("--max-new-tokens", "6", "--device", "cpu", "--dtype", "float32")


class Terminal:
    """`hlwq chat sample` with all its streams on a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        chat = ("chat", "sample", "--device", "cpu", *arguments)
        self.process = start(
            *chat, env=environment(TERM="dumb", COLUMNS="200"), stdin=slave, stdout=slave, stderr=slave
        )
        os.close(slave)
        self._seen = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def read_until(self, wanted: str) -> str:
        """Return what was shown up to and with a text, since the last call."""
        until = time.monotonic() + 100
        while wanted not in self._seen:
            assert select.select([self._master], [], [], until - time.monotonic())[0], self._seen
            self._seen += os.read(self._master, 4096).decode(errors="replace")
        shown, _, self._seen = self._seen.partition(wanted)
        return shown + wanted

    def interrupt_at_prompt(self) -> None:
        """Send Ctrl-C until there is a new prompt: readline misses a signal that comes before it waits for a key."""
        while True:
            self.process.send_signal(signal.SIGINT)
            if select.select([self._master], [], [], 1)[0]:
                self.read_until("> ")
                return

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal("--max-new-tokens", "1000")
    yield terminal
    terminal.close()


def test_ctrl_c_stops_an_answer_and_ctrl_d_ends(terminal: Terminal) -> None:
    assert "/help lists the commands" in terminal.read_until("> ")
    terminal.type("/help\n")
    assert "/reset" in terminal.read_until("Ctrl-D")
    terminal.read_until("> ")
    terminal.interrupt_at_prompt()  # nothing is lost, nothing ends
    terminal.type("The state of our union is\n")
    terminal.read_until("is\r\n")
    terminal.read_until(" ")  # of the answer
    terminal.process.send_signal(signal.SIGINT)
    count = int(terminal.read_until("tokens/s]").rpartition("[")[2].split()[0].replace(",", ""))
    assert 1 <= count < 1000
    terminal.read_until("> ")
    terminal.type("\x04")
    assert terminal.process.wait(60) == 0


def test_lines_through_a_pipe_are_a_conversation_until_it_is_reset(tmp_path: Path) -> None:
    picture = tmp_path / "red.png"
    Image.new("RGB", (48, 48), "red").save(picture)
    lines = [f"/image {picture}", "What is this?", "And this?", "/reset", "", "And this?", "//x"]
    ran = hlwq("chat", "sample", *SHORT, "-q", stdin="\n".join(lines).encode())
    model = HLWQModel.from_pretrained(resolve_model("sample"), dtype="float32", device="cpu")

    def answer(text: str, *history: Turn, images: list[Image.Image] | None = None) -> str:
        found = model.generate(text, images, max_new_tokens=6, history=history)
        assert isinstance(found, str)
        return found

    with Image.open(picture) as image:
        first = answer("What is this?", images=[image])
        turns = Turn("user", "What is this?", [image]), Turn("assistant", first)
        second = answer("And this?", *turns)
    third = answer("And this?")
    fourth = answer("/x", Turn("user", "And this?"), Turn("assistant", third))
    assert (ran.code, ran.out) == (0, f"{first}\n{second}\n{third}\n{fourth}\n"), ran.err
    assert ran.err == ""


def test_an_error_ends_a_message_and_not_the_conversation(tmp_path: Path) -> None:
    lines = ["/image", f"/image {tmp_path / 'no.png'}", "/images", "caf\udce9", "word " * 9000, "We"]
    ran = hlwq("chat", "sample", *SHORT, stdin="\n".join(lines).encode(errors="surrogateescape"))
    assert ran.code == 0, ran.err
    errors = [line for line in ran.err.splitlines() if line.startswith("Error: ")]
    says = (
        "needs the name",
        "There is no file",
        "/images is not a command",
        "not valid UTF-8",
        "context of this model",
    )
    assert len(errors) == len(says), ran.err
    assert all(text in line for text, line in zip(says, errors, strict=True)), errors
    assert ran.out.strip()
