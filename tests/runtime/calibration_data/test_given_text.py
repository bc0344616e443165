import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hlwq_cli.errors import NotFoundError, UnsupportedError, UsageError
from hlwq_cli.runtime.calibration_data.given_text import TextRequest, read_text


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_a_text_becomes_windows_spread_over_all_of_it(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(f"{i:04d}" for i in range(2000)))
    tokens = read_text(TextRequest(str(path), 2048, 0), tokenizer)
    all_ids = torch.tensor(ids_of(tokenizer, path.read_text()))
    assert tokens.ids.shape == (4, 512)
    starts = [0, 3 * 512, 7 * 512, 11 * 512]  # of 15 windows
    assert torch.equal(tokens.ids, torch.stack([all_ids[s : s + 512] for s in starts]))
    assert (tokens.origin, tokens.seed, tokens.count) == ("a.txt", None, 2048)


def test_each_window_begins_with_bos_where_the_tokenizer_adds_it(sample_tokenizer: Any) -> None:
    tokens = read_text(TextRequest("sample", 4096, 0), sample_tokenizer)
    assert tokens.ids.shape == (8, 512)
    assert (tokens.ids[:, 0] == sample_tokenizer.bos_token_id).all()
    assert not (tokens.ids[:, 1:] == sample_tokenizer.bos_token_id).any()


def test_windows_are_no_longer_than_the_context(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("word " * 1000)
    assert read_text(TextRequest(str(tmp_path / "a.txt"), 2048, 0, context=96), tokenizer).ids.shape == (21, 96)


def test_rows_with_text_and_with_messages_are_read(sample_tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    messages = [{"role": "user", "content": "Who are you? " * 200}, {"role": "assistant", "content": "A model."}]
    path.write_text(json.dumps({"text": "Plain words. " * 300}) + "\n\n" + json.dumps({"messages": messages}) + "\n")
    tokens = read_text(TextRequest(str(path), 2048, 0), sample_tokenizer)
    written = "Plain words. " * 300, sample_tokenizer.apply_chat_template(messages, tokenize=False)
    expected = [i for text in written for i in ids_of(sample_tokenizer, text)]
    assert tokens.ids[:, 1:].flatten().tolist() == expected[: tokens.ids[:, 1:].numel()] or len(tokens.ids) == 4
    assert sample_tokenizer.decode(tokens.ids[-1]).count("Who are you?") > 10


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", "", "is empty"),
        ("a.txt", " \n\n", "is empty"),
        ("a.txt", "too short " * 100, "has 1,000 tokens, and calibration needs at least 2,048"),
        ("a.jsonl", '{"text": "x"}\n{"text"\n', "Line 2 of .*a.jsonl is not valid JSON"),
        ("a.jsonl", '{"text": "x"}\n{"prompt": "x"}\n', "Row 2 of .*a.jsonl has neither `text` nor `messages`"),
        ("a.jsonl", '["x"]\n', "has neither"),
        ("a.jsonl", '{"messages": [{"role": "user", "content": "x"}]}\n', "has no chat template"),
    ],
)
def test_bad_text_is_refused(tokenizer: Any, tmp_path: Path, name: str, content: str, says: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=says):
        read_text(TextRequest(str(tmp_path / name), 32768, 0), tokenizer)


def test_messages_that_the_template_refuses_are_named(sample_tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"messages": [{"role": "user", "content": 5}]}\n')
    with pytest.raises(UnsupportedError, match=r"refuses the messages of row 1"):
        read_text(TextRequest(str(tmp_path / "a.jsonl"), 32768, 0), sample_tokenizer)


def test_fewer_tokens_may_be_asked_for(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("just enough " * 50)
    assert read_text(TextRequest(str(tmp_path / "a.txt"), 512, 0), tokenizer).count == 512


def test_a_missing_file_is_not_looked_for_on_the_hub(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="There is no file"):
        read_text(TextRequest(str(tmp_path / "none.txt"), 2048, 0), tokenizer)
