"""A checkpoint with code of its own: the code is never run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from hlwq_cli.errors import UnsupportedError
from hlwq_cli.runtime import load_processor

from . import kinds
from .kinds import change, opened


def custom_code(folder: Path, **settings: Any) -> Path:
    """A model of a type that only its own code knows; the code leaves a file behind when it runs."""
    kinds.llama(folder)
    (folder / "code.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    auto_map = {"AutoConfig": "code.MyConfig", "AutoModelForCausalLM": "code.MyModel"}
    change(
        folder, "config.json", **{"model_type": "my_llm", "architectures": ["MyModel"], "auto_map": auto_map} | settings
    )
    return folder


@pytest.mark.parametrize("model_type", ["my_llm", "llama"])
def test_custom_code_is_refused_and_neither_run_nor_asked_for(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Unread:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"stdin.{name} was used")

    custom_code(tmp_path, model_type=model_type)
    monkeypatch.setattr(sys, "stdin", Unread())
    with pytest.raises(UnsupportedError, match="needs custom code, and hlwq never runs a checkpoint's own code"):
        opened(tmp_path)
    assert not (tmp_path / "ran").exists()
    assert capsys.readouterr().out == ""


def test_custom_code_of_a_model_that_transformers_knows_is_not_needed(tmp_path: Path) -> None:
    custom_code(tmp_path, model_type="llama", architectures=["LlamaForCausalLM"])
    assert opened(tmp_path).generate("Hi", max_new_tokens=2) is not None
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_with_custom_code_alone_is_refused(tmp_path: Path) -> None:
    kinds.llama(tmp_path)
    change(tmp_path, "config.json", model_type="arcee", architectures=None)
    change(
        tmp_path, "tokenizer_config.json", tokenizer_class="MyTokenizer", auto_map={"AutoTokenizer": ["code.My", None]}
    )
    with pytest.raises(UnsupportedError, match=r"The tokenizer of .* never runs a checkpoint's own code"):
        load_processor(str(tmp_path))
