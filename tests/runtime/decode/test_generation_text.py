"""Text by the loop over a static cache is that of transformers' generate, whole and in pieces."""

from typing import Any

import pytest

from hlwq_cli.runtime import HLWQModel
from hlwq_cli.runtime.decode import Decoder
from hlwq_cli.samples import resolve_model


@pytest.fixture(scope="module")
def sample() -> HLWQModel:
    return HLWQModel.from_pretrained(resolve_model("sample"), dtype="float32", device="cpu")


@pytest.mark.parametrize(
    "options",
    [{}, {"stop": [","]}, {"stop": ["of the", "nowhere"]}, {"temperature": 1.2, "top_p": 0.9, "seed": 4}],
)
def test_text_is_that_of_transformers_whole_and_in_pieces(sample: HLWQModel, options: dict[str, Any]) -> None:
    prompts = ["My fellow citizens,", "The state of our union is"]
    shared = {"max_new_tokens": 16, "chat": False, **options}
    expected = sample.generate(prompts, **shared), "".join(sample.stream(prompts[0], **shared))
    sample.generation.decoder = Decoder(sample.model)
    try:
        found = sample.generate(prompts, **shared), "".join(sample.stream(prompts[0], **shared))
    finally:
        sample.generation.decoder = None
    assert found == expected


def test_closing_a_stream_frees_the_loop_for_the_next_answer(sample: HLWQModel) -> None:
    expected = sample.generate("We", max_new_tokens=8, chat=False)
    sample.generation.decoder = Decoder(sample.model)
    try:
        pieces = sample.stream("The state of our union is", max_new_tokens=400, chat=False)
        next(pieces)
        pieces.close()  # type: ignore[attr-defined]
        assert not sample.generation.decoder.lock.locked()
        assert sample.generate("We", max_new_tokens=8, chat=False) == expected
    finally:
        sample.generation.decoder = None
