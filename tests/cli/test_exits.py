"""Every exit of every command: its promised code, and for each refusal two sentences on stderr alone."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hlwq_cli.main import COMMANDS
from tests.cli.push.push_command import REPO, TOKEN
from tests.cli.run_command import CommandResult, assert_refused, hlwq
from tests.support.builders import LLAMA, dense, save_tensors
from tests.support.files import edit_json, write_header
from tests.support.hub_server import HubServer
from tests.support.signal_on_open import SignalOnOpen

# huggingface_hub uploads with a method that its HTTP client has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

DONE, FAILED, USAGE, NOT_FOUND, NOT_ALLOWED, CONFLICT, GATE, INTERRUPTED = 0, 1, 2, 3, 4, 5, 6, 130
TEXT = ("--kld", "--data", "sample", "--window", "16", "--windows", "1", "--device", "cpu")
SERVED = ("--engine", "transformers")
Case = tuple[str, int, Callable[["Place"], list[str | Path]]]


class Place:
    """Folders and repositories that are valid, damaged, gated or in the way; each made when it is asked for."""

    def __init__(self, folder: Path, coded: Path, hub: HubServer, sample: str) -> None:
        self.folder, self._coded, self.hub, self.sample = folder, coded, hub, sample

    @property
    def source(self) -> Path:
        return save_tensors(self.folder / "source", dense(), LLAMA)

    @property
    def broken_source(self) -> Path:
        source = self.source
        write_header(source / "model.safetensors", b"{", b"")
        return source

    @property
    def coded(self) -> Path:
        return Path(shutil.copytree(self._coded, self.folder / "coded"))

    @property
    def broken(self) -> Path:
        """A result whose configuration is not that of a result."""
        coded = self.coded
        edit_json(coded / "config.json", quantization_config=5)
        return coded

    @property
    def damaged(self) -> Path:
        """A result with a wrong byte in its codes."""
        coded = self.coded
        path = sorted(coded.glob("*.safetensors"))[0]
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(raw)
        return coded

    @property
    def locked(self) -> Path:
        """A name below a file, where no folder can be made."""
        (self.folder / "file").write_text("")
        return self.folder / "file" / "out"

    @property
    def taken(self) -> Path:
        (self.folder / "taken").mkdir()
        (self.folder / "taken" / "mine.txt").write_text("mine")
        return self.folder / "taken"

    @property
    def gated(self) -> str:
        """A repository whose terms the user has not accepted."""
        self.hub.publish("tests/gated", self._coded, gated=True)
        self.hub.tokens.clear()
        return "tests/gated"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def used_port(self) -> str:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        return str(self._socket.getsockname()[1])

    def close(self) -> None:
        if hasattr(self, "_socket"):
            self._socket.close()


def stranger(place: Place) -> Path:
    """Push another checkpoint to the repository first; return the folder."""
    place.hub.publish(REPO, place.source)
    return place.coded


CASES: list[Case] = [
    ("quantize", DONE, lambda p: [p.source, p.out, "--threads", "1"]),
    ("quantize", FAILED, lambda p: [p.broken_source, p.out]),
    ("quantize", USAGE, lambda p: [p.source, p.out, "--bits", "99"]),
    ("quantize", NOT_FOUND, lambda p: [p.folder / "nowhere", p.out]),
    ("quantize", NOT_ALLOWED, lambda p: [p.gated, p.out]),
    ("quantize", CONFLICT, lambda p: [p.source, p.taken]),
    ("quantize", GATE, lambda p: [p.source, p.out, "--max-unquantized", "0%"]),
    ("inspect", DONE, lambda p: [p.coded, "--verify"]),
    ("inspect", FAILED, lambda p: [p.broken]),
    ("inspect", USAGE, lambda p: [p.coded, "--revision", "main"]),
    ("inspect", NOT_FOUND, lambda p: [p.source]),
    ("inspect", NOT_ALLOWED, lambda p: [p.gated]),
    ("inspect", GATE, lambda p: [p.damaged, "--verify"]),
    ("bench", DONE, lambda p: [p.sample, *TEXT, "--ref", "sample"]),
    ("bench", FAILED, lambda p: [p.broken, *TEXT, "--ref", "sample"]),
    ("bench", USAGE, lambda p: [p.sample, "--kld"]),
    ("bench", NOT_FOUND, lambda p: [p.folder / "nowhere", *TEXT, "--ref", "sample"]),
    ("bench", NOT_ALLOWED, lambda p: [p.gated, *TEXT, "--ref", "sample"]),
    ("bench", GATE, lambda p: [p.sample, *TEXT, "--ref", "sample", "--max-kld", "0"]),
    ("generate", DONE, lambda p: [p.sample, "-p", "We", "--max-new-tokens", "2", "--device", "cpu"]),
    ("generate", FAILED, lambda p: [p.broken, "-p", "We"]),
    ("generate", USAGE, lambda p: [p.coded, "-p", ""]),
    ("generate", NOT_FOUND, lambda p: [p.folder / "nowhere", "-p", "We"]),
    ("generate", NOT_ALLOWED, lambda p: [p.gated, "-p", "We"]),
    ("chat", FAILED, lambda p: [p.broken]),
    ("chat", USAGE, lambda p: [p.coded, "--execution", "fast"]),
    ("chat", NOT_FOUND, lambda p: [p.folder / "nowhere"]),
    ("chat", NOT_ALLOWED, lambda p: [p.gated]),
    ("serve", FAILED, lambda p: [p.coded, "--port", p.used_port, *SERVED]),
    ("serve", USAGE, lambda p: [p.coded, "--engine", "fast"]),
    ("serve", NOT_FOUND, lambda p: [p.folder / "nowhere", *SERVED]),
    ("serve", NOT_ALLOWED, lambda p: [p.gated, *SERVED]),
    ("demo", FAILED, lambda p: [p.coded, "--port", p.used_port]),
    ("demo", USAGE, lambda p: [p.coded, "--open"]),
    ("demo", NOT_FOUND, lambda p: [p.folder / "nowhere"]),
    ("demo", NOT_ALLOWED, lambda p: [p.gated]),
    ("export", DONE, lambda p: [p.coded, p.out]),
    ("export", FAILED, lambda p: [p.broken, p.out]),
    ("export", USAGE, lambda p: [p.coded, p.out, "--max-shard-size", "much"]),
    ("export", NOT_FOUND, lambda p: [p.source, p.out]),
    ("export", NOT_ALLOWED, lambda p: [p.gated, p.out]),
    ("export", CONFLICT, lambda p: [p.coded, p.taken]),
    ("card", DONE, lambda p: [p.coded]),
    ("card", FAILED, lambda p: [p.broken]),
    ("card", USAGE, lambda p: [p.coded, "--repo", "no owner"]),
    ("card", NOT_FOUND, lambda p: [p.source]),
    ("push", DONE, lambda p: [p.coded, REPO]),
    ("push", FAILED, lambda p: [p.damaged, REPO]),
    ("push", USAGE, lambda p: [p.coded, "no owner"]),
    ("push", NOT_FOUND, lambda p: [p.source, REPO]),
    ("push", NOT_ALLOWED, lambda p: [p.coded, "bob/model"]),
    ("push", CONFLICT, lambda p: [stranger(p), REPO]),
]  # fmt: skip
INTERRUPTIBLE: dict[str, Callable[[Place], list[str | Path]]] = {
    "quantize": lambda p: [p.source, p.out],
    "inspect": lambda p: [p.coded],
    "bench": lambda p: [p.coded, "--ppl", "--data", "sample"],
    "generate": lambda p: [p.coded, "-p", "We"],
    "chat": lambda p: [p.coded],
    "serve": lambda p: [p.coded, *SERVED],
    "demo": lambda p: [p.coded],
    "export": lambda p: [p.coded, p.out],
    "card": lambda p: [p.coded],
    "push": lambda p: [p.coded, REPO],
}


@pytest.fixture(scope="module")
def ctrl_c() -> SignalOnOpen:
    return SignalOnOpen()


@pytest.fixture
def place(tmp_path: Path, coded: Callable[[str], Path], account: HubServer, coded_sample: str) -> Iterator[Place]:
    place = Place(tmp_path, coded("qwen3"), account, coded_sample)
    yield place
    place.close()


def test_every_command_is_in_the_tables() -> None:
    assert {name for name, _, _ in CASES} == set(COMMANDS) == set(INTERRUPTIBLE)


@pytest.mark.parametrize(("name", "code", "arguments"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_command_ends_with_the_promised_code(
    place: Place, name: str, code: int, arguments: Callable[[Place], list[str | Path]]
) -> None:
    ran = hlwq(name, *arguments(place))
    assert TOKEN not in ran.out + ran.err
    assert "Unexpected" not in ran.err
    if code == DONE:
        assert (ran.code, ran.out != "") == (DONE, True), ran.err
    elif code == GATE and name in ("inspect", "bench"):  # what was measured is the result; the gate is an error
        assert (ran.code, ran.out != "") == (GATE, True), ran.err
    else:
        refusal = "".join(ran.err.splitlines(keepends=True)[-2:])  # after progress
        assert_refused(CommandResult(ran.code, ran.out, refusal), code)


@pytest.mark.parametrize("name", COMMANDS)
def test_interrupted_command_ends_with_130(place: Place, ctrl_c: SignalOnOpen, name: str) -> None:
    arguments = INTERRUPTIBLE[name](place)
    ctrl_c.arm(str(place.folder))
    ran = hlwq(name, *arguments)
    assert not ctrl_c.is_armed, "the command opened no file"
    assert (ran.code, ran.out) == (INTERRUPTED, ""), ran.err
    assert "Interrupted." in ran.err or "Stopped." in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("arguments", [["--no-such-option"], []])
def test_invalid_usage_ends_with_2(name: str, arguments: list[str]) -> None:
    ran = hlwq(name, *arguments)
    assert (ran.code, ran.out) == (USAGE, "")
