"""Chat templates that refuse, fail or have no default."""

from __future__ import annotations

from pathlib import Path

import pytest

from hlwq_cli.errors import UnsupportedError, UsageError
from hlwq_cli.runtime.chat import Turn

from . import kinds
from .kinds import opened


def test_a_template_that_refuses_is_an_error_with_its_own_sentence(tmp_path: Path) -> None:
    kinds.llama(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('Conversation roles must alternate') }}")
    model = opened(tmp_path)
    assert model.has_chat_template
    for ask in (model.generate, model.stream):
        with pytest.raises(UsageError, match="refuses the conversation: Conversation roles must alternate"):
            ask("Hello")
    assert model.generate("Hello", chat=False, max_new_tokens=2) is not None


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{% for %}", "{{ messages + 1 }}", "{{ nothing.at.all }}"])
def test_a_template_that_fails_is_a_sentence(template: str, tmp_path: Path) -> None:
    kinds.llama(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(UnsupportedError, match="The chat template of this model fails: "):
        opened(tmp_path).generate("Hello")


def test_named_templates_without_a_default_are_no_chat_template(tmp_path: Path) -> None:
    kinds.llama(tmp_path)
    plain = opened(tmp_path).generate("Hello", max_new_tokens=4)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("x")
    model = opened(tmp_path)
    assert not model.has_chat_template
    assert model.generate("Hello", max_new_tokens=4) == plain
    with pytest.raises(UsageError, match="needs a chat template"):
        model.generate("Hello", history=[Turn("user", "Hi")])
    with pytest.raises(UsageError, match="has no chat template"):
        model.generate("Hello", chat=True)
