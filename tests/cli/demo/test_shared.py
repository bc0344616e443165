"""Push to a Hub, measure the pushed checkpoint, and chat with it and its source on a shared page.

All tests use the same model and one server: `hlwq demo USER/REPO --compare sample --share`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError

import pytest
import torch
from playwright.sync_api import Browser, expect

from hlwq_cli.runtime import HLWQModel
from hlwq_cli.samples import sample_file
from tests.cli.run_command import hlwq
from tests.conftest import HUB

from .chat_page import ENDLESS, greedy, log_in
from .conftest import Captions, OpenChat
from .demo_server import DemoServer, demo
from .test_bad_input import DIRECT

REPO, TOKEN = "ann/sample-Q5", "hf_" + "round" * 8
TEXT = ("--kld", "--ref", "sample", "--data", "sample", "--window", "64", "--windows", "1", "--json")
# huggingface_hub uploads with a method that its HTTP client has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def pushed(measured_sample: Path) -> Iterator[str]:
    HUB.reset()
    HUB.login(TOKEN, "ann")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", TOKEN)
        ran = hlwq("push", measured_sample, REPO)
        assert ran.code == 0, ran.err
        yield REPO


@pytest.fixture(scope="module")
def tunnel() -> dict[str, str]:
    """Replace Gradio's tunnel program, whose server is not reachable in tests, by a script."""
    from gradio.tunneling import BINARY_FILENAME

    program = Path(os.environ["HF_HOME"]) / "gradio" / "frpc" / BINARY_FILENAME
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text('#!/bin/sh\necho "start proxy success: http://share.example/$5"\nexec sleep 600\n')
    program.chmod(0o755)
    return {"GRADIO_SHARE_SERVER_ADDRESS": "127.0.0.1:9"}


@pytest.fixture(scope="module")
def server(pushed: str, tunnel: dict[str, str]) -> Iterator[DemoServer]:
    options = ("--compare", "sample", "--share", "--dtype", "float32", "--device", "cpu")
    with demo(pushed, *options, HF_TOKEN=TOKEN, no_proxy="127.0.0.1,localhost", **tunnel) as server:
        public = server.url
        port = public.removeprefix("https://share.example/")
        server.url = f"http://127.0.0.1:{port}/"  # the address behind the tunnel
        yield server
        _, out, err = server.end()
    assert out == f"{public}\n{server.url}\n"
    assert (out + err).count(password_of(server)) == 1
    assert TOKEN not in out + err


def password_of(server: DemoServer) -> str:
    found = re.search(r"^Login: hlwq, password (\S{20,}) \(not shown again\)$", "".join(server.err), re.MULTILINE)
    assert found, server.err
    return found[1]


@pytest.fixture
def login(server: DemoServer) -> tuple[str, str]:
    return "hlwq", password_of(server)


def test_wrong_password_is_refused(browser: Browser, server: DemoServer) -> None:
    page = browser.new_page()
    page.goto(server.url)
    log_in(page, "hlwq", "wrong")
    expect(page.get_by_text("Incorrect Credentials")).to_be_visible()
    expect(page.locator("#message")).to_have_count(0)
    for path in ("config", "gradio_api/info"):
        with pytest.raises(HTTPError) as refused:
            DIRECT.open(server.url + path, timeout=30)
        assert refused.value.code == 401
        refused.value.close()
    page.close()


def test_pushed_checkpoint_gives_the_same_figures(pushed: str, measured_sample: Path) -> None:
    figures = []
    for path in (str(measured_sample), pushed):
        ran = hlwq("bench", path, *TEXT)
        assert ran.code == 0, ran.err
        figures.append(json.loads(ran.out)["report"]["measured"][0]["divergence"])
    assert figures[0] == figures[1]


def test_both_models_answer_with_their_own_text(
    open_chat: OpenChat, login: tuple[str, str], measured_sample: Path, captions: Captions
) -> None:
    torch.set_num_threads(1)
    models = [HLWQModel.from_pretrained(p, dtype="float32", device="cpu") for p in (str(measured_sample), "sample")]
    wanted = [model.generate(ENDLESS, max_new_tokens=48) for model in models]
    assert wanted[0] != wanted[1]
    one = greedy(open_chat, 48, login=login)
    one.ask(ENDLESS)
    assert min(one.pieces(0), one.pieces(1)) > 5
    assert [one.said(0), one.said(1)] == wanted
    assert one.figures(0)[0] == one.figures(1)[0] == 48
    question, right = captions
    one.attach(sample_file("eval/picture-09.png"))
    one.ask(question)
    assert one.said(0) == one.said(1) == right["picture-09.png"]


def test_panel_describes_both_and_shows_the_pushed_chart(open_chat: OpenChat, login: tuple[str, str]) -> None:
    one = open_chat(login=login)
    assert [t.split("\n")[0] for t in one.page.locator(".facts").all_inner_texts()] == [REPO, "sample"]
    one.page.get_by_role("button", name="Measured against its source").click()
    one.page.wait_for_function("document.querySelector('#side img')?.naturalWidth > 500")


def test_stop_ends_both_answers(open_chat: OpenChat, login: tuple[str, str]) -> None:
    one = greedy(open_chat, 1900, login=login)
    one.send(ENDLESS)
    one.streams(0)
    one.stop_button.click()
    one.wait()
    assert one.figures(0)[1] == "stopped"
    assert one.parts(1) == ["stopped"]
