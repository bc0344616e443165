"""Requests that the demo's server refuses, over HTTP, and logins that become slow. No model is needed for these."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlencode

import pytest

from hlwq_cli.ui.demo.guard import MAX_BODY_BYTES, LoginLimit, remove_oldest
from tests.cli.run_command import start

from .raw_visitor import Answer, RawVisitor

LOGIN = ("ann", "correct: horse")


SERVER = """
import gradio as gr
from hlwq_cli.ui.demo.serve import Access, gradio_environment, served
with gradio_environment():
    with gr.Blocks(analytics_enabled=False) as blocks:
        pass
    with served(blocks, Access(False, {login}), None) as address:
        print(address.url, flush=True)
        input()
raise SystemExit
"""


@pytest.fixture(scope="module")
def page() -> Iterator[RawVisitor]:
    """An empty page with a login, served as `hlwq demo` serves its own."""
    waits, end = os.pipe()
    server = start("demo", before=SERVER.format(login=LOGIN), stdin=waits, stderr=subprocess.DEVNULL)
    os.close(waits)
    assert server.stdout is not None
    yield RawVisitor(server.stdout.readline().strip())
    os.write(end, b"\n")
    os.close(end)
    assert server.wait(60) == 0
    server.stdout.close()


def log_in(page: RawVisitor, password: str) -> Answer:
    body = urlencode({"username": LOGIN[0], "password": password}).encode()
    return page.send("POST", "/login", body, Content_Type="application/x-www-form-urlencoded")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "10.0.0.1", "0.0.0.0"])
def test_other_hosts_are_refused(page: RawVisitor, host: str) -> None:
    assert page.send("GET", "/", Host=host).status == 400


def test_page_is_served_by_both_names_of_this_machine(page: RawVisitor) -> None:
    port = page.host.rpartition(":")[2]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", "localhost"):
        assert page.send("GET", "/", Host=host, Origin=f"http://{host}").status == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "http://[", "file://"])
@pytest.mark.parametrize(("method", "path"), [("GET", "/config"), ("POST", "/login"), ("POST", "/gradio_api/upload")])
def test_pages_of_other_sites_are_refused(page: RawVisitor, origin: str, method: str, path: str) -> None:
    assert page.send(method, path, Origin=origin).status == 403


def test_state_changes_with_post_only(page: RawVisitor) -> None:
    refused = page.send("GET", "/logout")
    assert (refused.status, refused.headers["allow"]) == (405, "POST")
    assert page.send("POST", "/logout").status == 302
    assert page.send("GET", "/logout/").status == 405


@pytest.mark.parametrize("path", ["deep_link", "proxy=https://x.hf.space/", "vibe-code/", "runs", "dev/reload"])
def test_addresses_that_the_page_does_not_use_are_not_found(page: RawVisitor, path: str) -> None:
    assert page.send("GET", f"/gradio_api/{path}").status == 404


def test_large_bodies_are_refused(page: RawVisitor) -> None:
    for path, size in (("queue/join", MAX_BODY_BYTES + 1), ("run/predict", 10**12), ("upload", 10**9)):
        told = page.send("POST", f"/gradio_api/{path}", b"", Content_Length=str(size), Content_Type="application/json")
        assert told.status in (401, 413)
    body = iter([b"a=x&" * 2**18] * (MAX_BODY_BYTES // 2**20 + 1))  # in chunks, without a length
    answer = page.send("POST", "/login", body, Content_Type="application/x-www-form-urlencoded")  # type: ignore[arg-type]
    assert answer.status in (400, 413)


def test_logins_are_slow_after_failures(page: RawVisitor) -> None:
    began = time.monotonic()
    for _ in range(6):
        assert log_in(page, "wrong").status == 400
    assert time.monotonic() - began > 0.9  # the sixth waits a second, the next two
    with ThreadPoolExecutor(2) as pool:  # one of them waits, and the other is refused meanwhile
        answers = sorted(pool.map(lambda _: log_in(page, LOGIN[1]), range(2)), key=lambda answer: answer.status)
    assert [answer.status for answer in answers] == [200, 429]
    assert answers[1].body == b"Too many attempts."
    assert int(answers[1].headers["retry-after"]) >= 1
    began = time.monotonic()
    assert log_in(page, "wrong").status == 400  # a success starts anew
    assert time.monotonic() - began < 1


def test_attempts_wait_twice_as_long_each_time() -> None:
    import asyncio

    limit = LoginLimit(free=2, longest=0.04)
    waits = []

    async def refuse(scope: object, receive: object, send: object) -> None:
        await send({"type": "http.response.start", "status": 400})  # type: ignore[operator]

    async def ignore(message: object) -> None:
        pass

    async def attempts() -> None:
        for _ in range(4):
            waits.append(limit.seconds_to_wait())
            await limit.attempt(refuse, {}, None, ignore)

    asyncio.run(attempts())
    assert waits[:2] == [0, 0]
    assert all(0 < wait <= 0.04 for wait in waits[2:])


def test_oldest_uploads_go_first_and_pictures_of_conversations_stay(tmp_path: Path) -> None:
    for i, name in enumerate(("old", "kept-1", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(bytes(100))
        os.utime(tmp_path / name / "a.png", (i, i))
    remove_oldest(tmp_path, 150)
    assert sorted(p.parent.name for p in tmp_path.rglob("*.png")) == ["kept-1", "new"]
