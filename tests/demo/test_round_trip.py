"""Push to a Hub, measure what arrived by its name there, and talk to it: the same model all the way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hlwq_cli.runtime.model import HLWQModel
from hlwq_cli.samples import sample_file
from tests.cli.run import hlwq
from tests.conftest import HUB

from .conftest import Captions, NewTalk
from .server import DemoServer, demo
from .talk import greedy

REPO, TOKEN, LOCAL = "ann/sample-Q5", "hf_" + "round" * 8, "127.0.0.1,localhost"
TEXT = ("--kld", "--ref", "sample", "--data", "sample", "--window", "64", "--windows", "1", "--json")
# huggingface_hub uploads in a way that its own HTTP client calls old.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def pushed(coded_sample: Path) -> Iterator[str]:
    HUB.reset()
    HUB.login(TOKEN, "ann")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", TOKEN)
        ran = hlwq("push", coded_sample, REPO)
        assert ran.code == 0, ran.err
        yield REPO


@pytest.fixture(scope="module")
def server(pushed: str) -> Iterator[DemoServer]:
    with demo(pushed, "--dtype", "float32", "--device", "cpu", HF_TOKEN=TOKEN, no_proxy=LOCAL) as server:
        yield server


def test_pushed_measured_and_talked_to(pushed: str, talk: NewTalk, coded_sample: Path, captions: Captions) -> None:
    figures = []
    for path in (str(coded_sample), pushed):
        ran = hlwq("bench", path, *TEXT)
        assert ran.code == 0, ran.err
        figures.append(json.loads(ran.out)["report"]["measured"][0]["divergence"])
    assert figures[0] == figures[1]
    torch.set_num_threads(1)
    model = HLWQModel.from_pretrained(str(coded_sample), dtype="float32", device="cpu")
    question, right = captions
    one = greedy(talk)
    assert one.ask("We are at peace with") == model.generate("We are at peace with", max_new_tokens=48)
    one.attach(sample_file("eval/picture-00.png"))
    assert one.ask(question) == right["picture-00.png"]
    assert REPO in one.page.locator(".facts").inner_text()
    one.page.get_by_role("button", name="Measured against its source").click()
    one.page.wait_for_function("document.querySelector('#side img')?.naturalWidth > 500")
