"""The bundled calibration set: what a model that sees is shown, and that it is not what `hlwq bench` measures on."""

import inspect
from typing import Any

import pytest
import torch
from transformers import Gemma4ForConditionalGeneration

from hlwq_cli.runtime import load_processor
from hlwq_cli.runtime.calibration_data import CalibrationTokens, overlap
from hlwq_cli.runtime.calibration_data.pictures import picture_inputs, with_bundled_pictures
from hlwq_cli.samples import calibration_file, sample_file


@pytest.fixture(scope="module")
def processor() -> Any:
    return load_processor("sample")


@pytest.fixture(scope="module")
def tokens() -> CalibrationTokens:
    return with_bundled_pictures(CalibrationTokens(torch.zeros(1, 4, dtype=torch.int64), "a text", "a tokenizer"))


def test_all_pictures_are_shown_with_their_captions_and_without_padding(
    processor: Any, tokens: CalibrationTokens
) -> None:
    taken = set(inspect.signature(Gemma4ForConditionalGeneration.forward).parameters)
    inputs = picture_inputs(tokens, processor, taken)
    written = [text for part in inputs for text in processor.tokenizer.batch_decode(part["input_ids"])]
    assert len(written) == len(tokens.captions) == 20
    assert all(set(part) <= taken and "pixel_values" in part for part in inputs)
    assert all(bool((part["attention_mask"] == 1).all()) for part in inputs)
    for caption in tokens.captions:
        assert sum(text.endswith(f"{tokens.question}<turn|>\n<|turn>model\n{caption}") for text in written) == 1
    assert all(text.count(processor.image_token) == 64 for text in written)


def test_no_calibration_picture_is_one_that_is_measured() -> None:
    def pictures(of: Any) -> set[bytes]:
        return {of(f"picture-{i:02d}.png").read_bytes() for i in range(20)}

    measured = pictures(lambda name: sample_file(f"eval/{name}"))
    assert len(measured) == len(pictures(calibration_file)) == 20
    assert not measured & pictures(calibration_file)


def test_the_calibration_text_is_not_the_measured_text(sample_tokenizer: Any) -> None:
    def ids(path: Any) -> torch.Tensor:
        return torch.tensor([sample_tokenizer(path.read_text(), verbose=False)["input_ids"]])

    assert overlap(ids(calibration_file("addresses.txt")), ids(sample_file("eval/addresses.txt"))) < 0.001
