from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hlwq_cli.errors import CorruptError, NotFoundError, UsageError
from hlwq_cli.runtime.calibration_data import CalibrationTokens, load_tokens
from hlwq_cli.runtime.calibration_data.tokens import tokenizer_digest


def some(tokenizer: Any) -> CalibrationTokens:
    ids = torch.randint(0, 260, (5, 32), generator=torch.Generator().manual_seed(0))
    pictures = torch.randint(0, 256, (2, 4, 6, 3), dtype=torch.uint8)
    return CalibrationTokens(ids, "a text", tokenizer_digest(tokenizer), 3, pictures, ("a", "b"), "What?")


def test_kept_tokens_come_back_and_are_written_as_the_same_bytes(tokenizer: Any, tmp_path: Path) -> None:
    tokens = some(tokenizer)
    (tmp_path / "kept.safetensors").write_bytes(tokens.dump())
    found = load_tokens(tmp_path / "kept.safetensors", tokenizer)
    assert torch.equal(found.ids, tokens.ids)
    assert torch.equal(found.pictures, tokens.pictures)
    assert (found.origin, found.seed, found.captions, found.question) == ("a text", 3, ("a", "b"), "What?")
    assert found.sha256 == tokens.sha256
    assert found.dump() == tokens.dump()


def test_the_hash_covers_ids_pictures_and_captions(tokenizer: Any) -> None:
    tokens = some(tokenizer)
    others = [
        replace(tokens, ids=tokens.ids.flip(0)),
        replace(tokens, ids=tokens.ids.reshape(10, 16)),
        replace(tokens, pictures=tokens.pictures.flip(0)),
        replace(tokens, captions=("a", "c")),
    ]
    assert len({t.sha256 for t in (tokens, *others)}) == 5


def test_tokens_of_another_tokenizer_are_refused(tokenizer: Any, sample_tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "kept.safetensors").write_bytes(some(sample_tokenizer).dump())
    with pytest.raises(UsageError, match="made by another tokenizer"):
        load_tokens(tmp_path / "kept.safetensors", tokenizer)


def test_files_that_hold_no_tokens_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="There is no file"):
        load_tokens(tmp_path / "none.safetensors", tokenizer)
    save_file({"weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="does not hold calibration tokens"):
        load_tokens(tmp_path / "model.safetensors", tokenizer)


@pytest.mark.parametrize("damage", ["short", "negative", "no captions"])
def test_a_damaged_file_is_refused(tokenizer: Any, tmp_path: Path, damage: str) -> None:
    path, tokens = tmp_path / "kept.safetensors", some(tokenizer)
    if damage == "negative":
        tokens = replace(tokens, ids=tokens.ids - 300)
    if damage == "no captions":
        tokens = replace(tokens, captions=("a",))
    content = tokens.dump()
    path.write_bytes(content[:-20] if damage == "short" else content)
    with pytest.raises(CorruptError, match="is damaged"):
        load_tokens(path, tokenizer)
