"""Fixtures: tokenizers of bytes, with and without BOS."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from hlwq_cli.runtime import load_processor
from tests.runtime.kinds import save_tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    """A token for each byte; no BOS is added."""
    save_tokenizer(tmp_path / "tokenizer")
    return AutoTokenizer.from_pretrained(tmp_path / "tokenizer")


@pytest.fixture(scope="session")
def sample_tokenizer() -> Any:
    """The bundled model's: BOS is added, and there is a chat template."""
    return load_processor("sample").tokenizer
