"""A model without image support and chat template: the page offers neither pictures nor a system prompt."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from playwright.sync_api import expect

from hlwq_cli.runtime import HLWQModel
from hlwq_cli.samples import sample_file

from .chat_page import greedy
from .conftest import OpenChat
from .demo_server import DemoServer, demo

LOGIN = ("ann", "correct: horse <battery>")


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blind") / "a <b>blind llama"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=4096,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        eos_token_id=1,
        bos_token_id=2,
        pad_token_id=0,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(sample_file(name), folder)
    return folder


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def server(blind: Path, scratch: Path) -> Iterator[DemoServer]:
    variables = {"TMPDIR": str(scratch), "HLWQ_DEMO_AUTH": ":".join(LOGIN)}
    with demo(blind, "--device", "cpu", "--kv-bits", "4,3", **variables) as server:
        yield server


def test_page_offers_only_what_the_model_supports(open_chat: OpenChat, blind: Path) -> None:
    one = greedy(open_chat, 12, login=LOGIN)
    assert one.page.locator("input[type=file]").count() == 0
    expect(one.page.get_by_label("System prompt")).to_have_count(0)
    assert one.page.locator(".facts h2").inner_text() == blind.name
    assert "codes of 4,3 bits" in one.page.locator(".facts").inner_text()
    model = HLWQModel.from_pretrained(str(blind), device="cpu", kv_cache_nbits="4,3")
    first = model.generate("We are", max_new_tokens=12)
    assert isinstance(first, str)
    assert one.ask("We are") == first.strip()
    assert one.ask("We are") == first.strip()


def test_ctrl_c_ends_the_server_and_removes_uploads(server: DemoServer, open_chat: OpenChat, scratch: Path) -> None:
    greedy(open_chat, login=LOGIN)
    assert len([*scratch.glob("hlwq-demo-*")]) == 1
    code, out, err = server.end(signal.SIGINT)
    assert (code, out) == (130, server.url + "\n")
    assert err.splitlines()[-1] == "Stopped."
    assert "Traceback" not in err
    assert LOGIN[1] not in out + err
    assert [*scratch.glob("hlwq-demo-*")] == []
