"""Two models side by side, behind a login."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError

import pytest
import torch
from playwright.sync_api import Browser, expect

from hlwq_cli.runtime.model import HLWQModel
from hlwq_cli.samples import sample_file

from .conftest import Captions, NewTalk
from .server import DemoServer, demo
from .talk import ENDLESS, greedy, log_in
from .test_bad_input import DIRECT

LOGIN = ("ann", "correct: horse <battery>")


@pytest.fixture(scope="module")
def server(coded_sample: Path) -> Iterator[DemoServer]:
    options = ("--compare", "sample", "--dtype", "float32", "--device", "cpu")
    with demo(coded_sample, *options, HLWQ_DEMO_AUTH=":".join(LOGIN)) as server:
        yield server
        _, out, err = server.end()
    assert LOGIN[1] not in out + err


def test_a_wrong_password_opens_nothing(browser: Browser, server: DemoServer) -> None:
    page = browser.new_page()
    page.goto(server.url)
    log_in(page, LOGIN[0], "wrong")
    expect(page.get_by_text("Incorrect Credentials")).to_be_visible()
    expect(page.locator("#message")).to_have_count(0)
    for path in ("config", "gradio_api/info"):
        with pytest.raises(HTTPError) as refused:
            DIRECT.open(server.url + path, timeout=30)
        assert refused.value.code == 401
        refused.value.close()
    page.close()


def test_both_models_answer_each_in_its_own_words(talk: NewTalk, coded_sample: Path, captions: Captions) -> None:
    torch.set_num_threads(1)
    paths = (str(coded_sample), "sample")
    wanted = [
        HLWQModel.from_pretrained(p, dtype="float32", device="cpu").generate(ENDLESS, max_new_tokens=64) for p in paths
    ]
    one = greedy(talk, 64, login=LOGIN)
    one.send(ENDLESS)
    one.streams(0)
    one.streams(1)
    one.wait()
    assert [one.said(0), one.said(1)] == wanted
    assert wanted[0] != wanted[1]
    assert one.figures(0)[0] == one.figures(1)[0] == 64
    assert one.page.locator(".facts").count() == 2
    question, right = captions
    one.attach(sample_file("eval/picture-09.png"))
    one.ask(question)
    assert one.said(0) == one.said(1) == right["picture-09.png"]


def test_stop_stops_both(talk: NewTalk) -> None:
    one = greedy(talk, 1900, login=LOGIN)
    one.send(ENDLESS)
    one.streams(0)
    one.stop_button.click()
    one.wait()
    assert one.figures(0)[1] == "stopped"
    assert one.parts(1) == ["stopped"]
