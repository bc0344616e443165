"""HLWQModel answers: one prompt or many, whole or piece by piece, the same each time."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from hlwq_cli.errors import UnsupportedError, UsageError
from hlwq_cli.runtime import HLWQModel, PolarQuantModel
from hlwq_cli.runtime.chat import Turn
from hlwq_cli.samples import resolve_model, sample_file

PROMPTS = ["My fellow citizens,", "The state of our union is", "We"]
LONG = 8


@pytest.fixture(scope="module")
def model() -> HLWQModel:
    return HLWQModel.from_pretrained(resolve_model("sample"), dtype="float32", device="cpu")


def answer(model: HLWQModel, text: str, **options: object) -> str:
    found = model.generate(text, **{"max_new_tokens": LONG, "chat": False} | options)  # type: ignore[arg-type]
    assert isinstance(found, str)
    return found


def test_the_alias_is_the_same_class() -> None:
    assert PolarQuantModel is HLWQModel


def test_an_answer_has_words_and_not_the_prompt(model: HLWQModel) -> None:
    found = answer(model, PROMPTS[1])
    assert len(found.split()) > 3
    assert PROMPTS[1] not in found


@pytest.mark.parametrize("chat", [False, True])
def test_a_batch_of_unequal_prompts_equals_each_alone(model: HLWQModel, chat: bool) -> None:
    together = model.generate(PROMPTS, max_new_tokens=LONG, chat=chat)
    assert together == [answer(model, p, chat=chat) for p in PROMPTS]


def test_a_list_of_one_gives_a_list_of_one(model: HLWQModel) -> None:
    assert model.generate(PROMPTS[:1], max_new_tokens=4, chat=False) == [answer(model, PROMPTS[0], max_new_tokens=4)]


def test_a_seed_repeats_an_answer_and_another_seed_does_not(model: HLWQModel) -> None:
    first, again, other = (answer(model, "We", temperature=1.5, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_greedy_is_the_same_without_a_seed(model: HLWQModel) -> None:
    assert answer(model, "We") == answer(model, "We")


def test_a_stop_string_ends_the_answer_before_it(model: HLWQModel) -> None:
    whole = answer(model, PROMPTS[1])
    word = whole.split()[2]
    assert answer(model, PROMPTS[1], stop=[word]) == whole[: whole.index(word)]
    both = answer(model, PROMPTS[1], stop=["never said", word, whole.split()[1]])
    assert both == whole[: min(whole.index(word), whole.index(whole.split()[1]))]


def test_a_batch_stops_each_answer_at_its_own_place(model: HLWQModel) -> None:
    wholes = [answer(model, p) for p in PROMPTS]
    found = model.generate(PROMPTS, max_new_tokens=LONG, chat=False, stop=[","])
    assert found == [w.partition(",")[0] for w in wholes]


@pytest.mark.parametrize("stop", [(), (",",), ("nowhere to be found",)])
def test_a_stream_gives_what_generate_gives(model: HLWQModel, stop: tuple[str, ...]) -> None:
    for prompt in PROMPTS[:1]:
        pieces = list(model.stream(prompt, max_new_tokens=LONG, chat=False, stop=stop))
        assert "".join(pieces) == answer(model, prompt, stop=stop)


def test_a_stream_comes_in_pieces(model: HLWQModel) -> None:
    assert len([p for p in model.stream(PROMPTS[1], max_new_tokens=LONG, chat=False) if p]) > 3


def test_a_stream_with_a_seed_gives_what_generate_gives(model: HLWQModel) -> None:
    options = {"max_new_tokens": LONG, "chat": False, "temperature": 1.0, "seed": 3}
    assert "".join(model.stream("We", **options)) == answer(model, "We", **options)


def test_closing_a_stream_stops_its_thread(model: HLWQModel) -> None:
    before = threading.active_count()
    pieces = model.stream(PROMPTS[1], max_new_tokens=400, chat=False)
    next(pieces)
    pieces.close()
    assert threading.active_count() == before


def test_dropping_a_stream_stops_its_thread(model: HLWQModel) -> None:
    before = threading.active_count()
    pieces = model.stream(PROMPTS[1], max_new_tokens=400, chat=False)
    next(pieces)
    del pieces
    assert threading.active_count() == before


def test_a_cancelled_stream_ends_with_what_was_said_until_then(model: HLWQModel) -> None:
    pieces = model.stream(PROMPTS[1], max_new_tokens=400, chat=False)
    said = next(pieces)
    pieces.cancel()
    said += "".join(pieces)
    whole = answer(model, PROMPTS[1], max_new_tokens=pieces.tokens)
    assert pieces.tokens < 40
    assert said == whole


def test_a_stream_counts_its_tokens_and_their_speed(model: HLWQModel) -> None:
    pieces = model.stream(PROMPTS[1], max_new_tokens=LONG, chat=False)
    assert (pieces.prompt_tokens, pieces.tokens, pieces.tokens_per_second) == (8, 0, None)
    list(pieces)
    assert pieces.tokens == LONG
    assert pieces.tokens_per_second is not None
    assert 1 < pieces.tokens_per_second < 10_000


def test_history_is_what_the_chat_template_makes_of_it(model: HLWQModel) -> None:
    history = [Turn("user", PROMPTS[0]), Turn("assistant", "We are at peace.")]
    written = (
        f"<|turn>system\nBe brief.<turn|>\n<|turn>user\n{PROMPTS[0]}<turn|>\n<|turn>model\nWe are at peace.<turn|>\n"
        f"<|turn>user\n{PROMPTS[1]}<turn|>\n<|turn>model\n"
    )
    told = model.prepare([PROMPTS[1]], system="Be brief.", history=history)["input_ids"]
    assert told.tolist() == model.prepare([written], chat=False)["input_ids"].tolist()
    one = answer(model, PROMPTS[1], chat=True, history=history, max_new_tokens=32)
    assert "".join(model.stream(PROMPTS[1], max_new_tokens=32, history=history)) == one


def test_pictures_of_earlier_turns_are_seen(model: HLWQModel) -> None:
    document = json.loads(sample_file("eval/captions.json").read_text())
    question, captions = document["question"], document["captions"]
    first, second = (Image.open(sample_file(f"eval/{name}")) for name in ("picture-00.png", "picture-03.png"))
    history = [Turn("user", question, [first]), Turn("assistant", captions["picture-00.png"])]
    inputs = model.prepare([question], [[second]], history=history)
    alone = model.prepare([question], [[second]])
    assert len(inputs["pixel_values"]) == 2
    assert inputs["pixel_values"][1].tolist() == alone["pixel_values"][0].tolist()
    assert model.generate(question, [second], history=history, max_new_tokens=48) == captions["picture-03.png"]


def test_history_without_a_chat_template_is_refused(model: HLWQModel) -> None:
    with pytest.raises(UsageError, match="needs a chat template"):
        model.generate("We", chat=False, history=[Turn("user", "No.")])


def test_a_prompt_longer_than_the_context_is_refused_and_an_answer_ends_with_it(model: HLWQModel) -> None:
    assert model.max_context == 2048
    for ask in (model.generate, model.stream):
        with pytest.raises(UsageError, match=r"has 2,103 tokens, and the context of this model is 2,048"):
            ask("We " * 2100, chat=False)  # type: ignore[operator]
    pieces = model.stream("We " * 2040, max_new_tokens=LONG * 10, chat=False, temperature=1.0, seed=1)
    list(pieces)
    assert pieces.prompt_tokens + pieces.tokens <= 2048


def test_a_failure_in_the_thread_reaches_the_caller(model: HLWQModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(model.model, "generate", fail)
    with pytest.raises(UnsupportedError, match="cannot answer this: the device is gone") as raised:
        list(model.stream("We"))
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_an_unknown_option_of_a_stream_is_refused(model: HLWQModel) -> None:
    with pytest.raises(UsageError, match="wibble"):
        list(model.stream("We", wibble=1))


@pytest.mark.parametrize(
    "option",
    [{"max_new_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.5}],
)
def test_what_is_no_way_to_answer_is_refused(model: HLWQModel, option: dict[str, float]) -> None:
    (name,) = option
    with pytest.raises(UsageError, match=name):
        model.generate("We", **option)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=name):
        list(model.stream("We", **option))


def test_pictures_for_a_blind_model_are_refused(coded: Callable[[str], Path], copied: Callable[[Path], Path]) -> None:
    from transformers import AutoTokenizer

    from hlwq_cli.runtime.loading import load_model

    blind = HLWQModel(load_model(str(coded("llama"))), AutoTokenizer.from_pretrained(resolve_model("sample")))
    with pytest.raises(UsageError, match="does not support images"):
        blind.generate("What is this?", [object()])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="does not support images"):
        list(blind.stream("What is this?", [object()]))  # type: ignore[list-item]


def test_pictures_for_another_number_of_prompts_are_refused(model: HLWQModel) -> None:
    with pytest.raises(UsageError, match="2 prompts"):
        model.generate(["one", "two"], [[]])
