"""Answers of the Hub, or of a mirror, are a stranger's: names stay inside, and no more is read than is needed."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hlwq_cli.checkpoint.io import HubRepo
from hlwq_cli.errors import CorruptError, NotAllowedError
from tests.cli.run_command import assert_refused, hlwq
from tests.support.builders import tiny_llama
from tests.support.hub_server import HubServer

SIZE = 3 * 10**9
COMMIT = "0" * 40


class Mirror(ThreadingHTTPServer):
    """Sends whole files of 3 GB, whatever range is asked for, and counts the bytes it got rid of."""

    daemon_threads = True
    sent = 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Mirror

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        entry = {"dtype": "U8", "shape": [SIZE - 1000], "data_offsets": [0, SIZE - 1000]}
        head = json.dumps({"t": entry, "__metadata__": {"padding": "x" * 200_000}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(8 + len(head) + SIZE - 1000))
        self.end_headers()
        try:
            self.wfile.write(struct.pack("<Q", len(head)) + head)
            for _ in range(SIZE // 2**20):
                self.wfile.write(bytes(2**20))
                self.server.sent += 2**20
        except OSError:  # the reader has what it needs
            pass


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    server = Mirror()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.hf_hub_url", lambda repo, file, revision: f"{server.endpoint}/{repo}/{file}")
    yield server
    server.shutdown()
    server.server_close()


def test_header_from_a_mirror_that_ignores_ranges_is_read_without_the_file(mirror: Mirror, tmp_path: Path) -> None:
    repo = HubRepo("a/b", COMMIT, ["model.safetensors"], tmp_path, {"model.safetensors": SIZE})
    (info,) = repo.header("model.safetensors").values()
    assert (info.name, info.shape) == ("t", (SIZE - 1000,))
    assert mirror.sent < 64 * 2**20


@pytest.mark.parametrize("name", ["{victim}", "../victim.txt", "a/../../victim.txt", "a//b"])
def test_file_outside_the_folder_is_refused(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    hub.publish("ann/model", tiny_llama(tmp_path / "m"))
    usual = type(hub.repos["ann/model"]).info

    def info(repo: object, *args: object) -> dict[str, object]:
        document = dict(usual(repo, *args))  # type: ignore[arg-type]
        document["siblings"] = [*document["siblings"], {"rfilename": name.format(victim=victim)}]  # type: ignore[misc]
        return document

    monkeypatch.setattr(type(hub.repos["ann/model"]), "info", info)
    assert_refused(hlwq("quantize", "ann/model", tmp_path / "out"), 1, "The Hub lists the file", "Do not trust")
    assert victim.read_text() == "mine"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("token", ["hf_SECRETSECRET\x01abc", "\u201chf_SECRETSECRET\u201d", "hf_SECRET\u00e9SECRET"])
def test_token_that_no_request_can_carry_is_refused_and_not_shown(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("HLWQ_DEBUG", "1")
    ran = hlwq("inspect", "ann/model")
    assert ran.code == 4
    assert "The token of the Hub has characters that no token has." in ran.err
    assert "SECRET" not in ran.err
    with pytest.raises(NotAllowedError):
        HubRepo.find("ann/model", None)


def test_commit_that_would_be_a_path_is_refused(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish("ann/model", tiny_llama(tmp_path / "m"))
    repo = hub.repos["ann/model"]
    usual = repo.info
    monkeypatch.setattr(type(repo), "info", lambda self, *args: {**usual(*args), "sha": "../../elsewhere"})
    with pytest.raises(CorruptError, match="lists the file"):
        HubRepo.find("ann/model", None)
