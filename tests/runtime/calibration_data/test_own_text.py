"""Text that a model writes itself: BOS and chats, the same again for a seed, and with little memory."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hlwq_cli.errors import UsageError
from hlwq_cli.runtime import HLWQModel
from hlwq_cli.runtime.calibration_data import own_model
from hlwq_cli.runtime.calibration_data.own_model import OwnTextRequest, check_writes_text, ways, write_own_text
from hlwq_cli.runtime.calibration_data.own_text import Pieces, sample_text
from tests.runtime.kinds import ENCODER, save
from tests.support.builders import TEXT


@pytest.fixture(scope="module")
def model() -> HLWQModel:
    return HLWQModel.from_pretrained("sample", device="cpu", dtype="float32")


def test_half_of_the_pieces_are_chats_and_all_are_full(model: HLWQModel) -> None:
    tokens = sample_text(model, Pieces(6, 40, seed=1), memory_bytes=2**30)
    assert tokens.ids.shape == (6, 40)
    assert tokens.ids.dtype == torch.int64
    texts = model.tokenizer.batch_decode(tokens.ids)
    assert all(text.startswith("<bos>") for text in texts)
    assert [text.startswith("<bos><|turn>user\n") for text in texts] == [False] * 3 + [True] * 3
    assert len({tuple(row) for row in tokens.ids.tolist()}) == 6
    assert (tokens.origin, tokens.seed) == ("own text", 1)


def test_a_seed_gives_the_same_text_again_and_another_seed_another(model: HLWQModel) -> None:
    first, again, other = (sample_text(model, Pieces(2, 16, seed), 2**30).ids for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_text_follows_the_models_own_distribution(model: HLWQModel) -> None:
    """At temperature 1 the mean loss is the mean entropy, within its error; a sharper sampling has a lower loss."""
    ids = sample_text(model, Pieces(24, 48, seed=0), 2**30).ids[:12]
    with torch.inference_mode():
        log_p = model.model(ids).logits[:, :-1].double().log_softmax(-1)
    surprise = -log_p.gather(-1, ids[:, 1:, None])[..., 0] - -(log_p.exp() * log_p).sum(-1)
    assert abs(float(surprise.mean())) < 4 * float(surprise.std()) / math.sqrt(surprise.numel())


def test_a_shorter_batch_is_tried_when_memory_is_short(model: HLWQModel, monkeypatch: pytest.MonkeyPatch) -> None:
    generate, sizes = model.generation.generate, list[int]()

    def short(**options: torch.Tensor) -> torch.Tensor:
        sizes.append(len(options["input_ids"]))
        if sizes[-1] > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return generate(**options)

    monkeypatch.setattr(model.generation, "generate", short)
    assert sample_text(model, Pieces(6, 12, seed=0), 2**30).ids.shape == (6, 12)
    assert sizes == [3, 1, 2, 1] or max(sizes[1:]) <= 2


def test_a_model_that_does_not_fit_writes_as_a_coded_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_coded(device: str, weights: int) -> Iterator[own_model._Way]:
        yield from [way for way in ways(device, weights) if way.is_coded]

    monkeypatch.setattr(own_model, "ways", only_coded)
    monkeypatch.setattr(own_model, "PIECE", 8)
    save(LlamaForCausalLM(LlamaConfig(**TEXT)), tmp_path / "model")
    tokens = write_own_text(OwnTextRequest(str(tmp_path / "model"), None, "cpu", 16, 0, tmp_path / "model"))
    assert tokens.ids.shape == (2, 8)
    assert not list((tmp_path / "model").glob(".hlwq-own-text-*"))


def test_every_model_has_a_way_to_run_and_small_ones_run_as_they_are() -> None:
    assert [way.dtype for way in ways("cpu", 10**6)] == ["float32", "auto"]
    assert [way.is_coded for way in ways("cpu", 10**15)] == [True]


def test_an_encoder_is_asked_for_a_text(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    save(BertForMaskedLM(BertConfig(**ENCODER)), tmp_path / "bert")
    with pytest.raises(UsageError, match=r"BertForMaskedLM\) does not write text by itself") as refusal:
        check_writes_text(str(tmp_path / "bert"), None)
    assert refusal.value.hint == "Give a text: --calibrate FILE.txt."
