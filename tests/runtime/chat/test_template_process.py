"""Chat templates in a process of their own: the same prompts, and limits that a hostile template cannot pass."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hlwq_cli.errors import UnsupportedError, UsageError
from hlwq_cli.runtime.chat import TemplateProcess, Turn
from hlwq_cli.runtime.chat.template import as_chat
from hlwq_cli.runtime.loading.processor import open_processor
from hlwq_cli.samples import resolve_model

MESSAGES = [{"role": "user", "content": "We \u2028 \U0001f600"}]
LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
SECONDS = 0.3


@pytest.fixture(scope="module")
def process() -> Iterator[TemplateProcess]:
    process = TemplateProcess(SECONDS, memory_bytes=2**28, max_characters=1000)
    yield process
    process.close()


@pytest.fixture(scope="module")
def processor() -> Any:
    return open_processor(resolve_model("sample")).processor


@pytest.mark.parametrize("system", [None, "Answer \u2028 in \U0001f600."])
def test_prompts_are_those_of_transformers(process: TemplateProcess, processor: Any, system: str | None) -> None:
    turns = [Turn("user", "What?", [object(), object()]), Turn("assistant", 'A "b".\n'), Turn("user", "{{ 1 }}\\")]  # type: ignore[list-item]
    for of in (processor, processor.tokenizer):
        if getattr(of, "chat_template", None):
            wanted = as_chat(of, turns, system, True)
            assert as_chat(of, turns, system, True, process) == wanted
            assert "What?" in wanted


def test_special_tokens_reach_the_template(process: TemplateProcess) -> None:
    assert process.render("{{ bos_token }}{{ messages[0].content }}", MESSAGES, {"bos_token": "<s>"}) == (
        "<s>We \u2028 \U0001f600"
    )


def test_endless_template_is_ended_and_the_next_one_runs(process: TemplateProcess) -> None:
    assert process.render("ready", MESSAGES, {}) == "ready"
    with pytest.raises(UnsupportedError, match=r"takes more than 0\.3 seconds"):
        process.render(LOOPS, MESSAGES, {})
    assert process.render("ready", MESSAGES, {}) == "ready"


def test_template_that_never_returns_to_python_is_ended(process: TemplateProcess) -> None:
    process.render("ready", MESSAGES, {})
    with pytest.raises(UnsupportedError, match="takes more than"):
        process.render("{% set x = 9 ** messages[0].content|length ** 9 %}{{ x ** x }}", MESSAGES, {})


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ 'a' * 10 ** 10 }}", "MemoryError"),
        ("{{ messages[0].content * 1000 }}", "writes more than 1,000 characters"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ x", "unexpected end of template"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("(" * 10 + "{{ " + "(" * 5000 + " }}", "recursion|too many|unexpected"),
    ],
)
def test_template_that_fails_is_an_error(process: TemplateProcess, template: str, says: str) -> None:
    with pytest.raises(UnsupportedError, match=says):
        process.render(template, MESSAGES, {})


def test_template_that_refuses_a_conversation_says_why(process: TemplateProcess) -> None:
    with pytest.raises(UsageError, match=r"refuses the conversation: no images\."):
        process.render("{{ raise_exception('no images.') }}", MESSAGES, {})


def test_modules_of_the_current_folder_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("json", "jinja2", "transformers"):
        (tmp_path / f"{name}.py").write_text(f"open('{tmp_path}/ran', 'w').close()")
    monkeypatch.chdir(tmp_path)
    process = TemplateProcess()
    assert process.render("ready", MESSAGES, {}) == "ready"
    process.close()
    assert not (tmp_path / "ran").exists()
