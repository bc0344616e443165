"""Fixtures: a browser, and a server with the bundled sample, coded and measured."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, BrowserContext, Request, sync_playwright

from hlwq_cli.samples import sample_file
from tests.cli.run_command import hlwq

from .chat_page import ChatPage
from .demo_server import DemoServer, demo

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-software-rasterizer", "--disable-gpu-compositing",
    "--process-per-site",
)  # fmt: skip
OpenChat = Callable[..., ChatPage]
Captions = tuple[str, dict[str, str]]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium. Its scope is a module, because Playwright runs an event loop while it exists."""
    path = shutil.which("chromium")
    assert path, "These tests need Chromium: run scripts/chromium."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def measured_sample(coded_sample: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample at 5 bits, with figures and chart in its folder."""
    out = Path(shutil.copytree(coded_sample, tmp_path_factory.mktemp("demo") / "sample-Q5"))
    ran = hlwq(
        "bench", out, "--ref", "sample", "--kld", "--data", "sample", "--window", "64", "--windows", "1", "--save"
    )
    assert ran.code == 0, ran.err
    return out


@pytest.fixture(scope="session")
def captions() -> Captions:
    """The question about a picture, and the correct answers for the bundled pictures."""
    document = json.loads(sample_file("eval/captions.json").read_text())
    return document["question"], document["captions"]


@pytest.fixture(scope="session")
def server(measured_sample: Path) -> Iterator[DemoServer]:
    """A server with the coded sample's page. It must still run after all tests."""
    with demo(measured_sample, "--dtype", "float32", "--device", "cpu") as server:
        yield server
        assert server.process.poll() is None
        code, out, err = server.end()
    assert (code, out) == (128 + signal.SIGTERM, server.url + "\n")
    assert "Traceback" not in err


@pytest.fixture(scope="module")
def usual(browser: Browser, server: DemoServer) -> BrowserContext:
    """Visitors without options of their own. An open tab keeps the process that has compiled the scripts."""
    context = browser.new_context()
    context.new_page().goto(f"{server.url}favicon.ico")
    return context


@pytest.fixture
def open_chat(browser: Browser, usual: BrowserContext, server: DemoServer) -> Iterator[OpenChat]:
    """Open the page as a new visitor each time. No request may go to another host, and no script may fail."""
    contexts: list[BrowserContext] = []
    pages: list[ChatPage] = []
    asked: list[str] = []
    wrong: list[str] = []

    def note(request: Request) -> None:
        asked.append(request.url)

    def open_page(
        login: tuple[str, str] | None = None, color_scheme: Literal["light", "dark"] = "light", **options: object
    ) -> ChatPage:
        context = usual
        if options:
            context = browser.new_context(**options)  # type: ignore[arg-type]
            contexts.append(context)
        pages.append(ChatPage(context, server.url, login, note, wrong.append, color_scheme))
        return pages[-1]

    yield open_page
    for one in pages:
        one.page.close()
    for context in contexts:
        context.close()
    usual.clear_cookies()
    local = (server.url, "data:", "blob:")
    assert [url for url in asked if not url.startswith(local)] == []
    assert wrong == []
