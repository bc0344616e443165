"""A chat on the page, in a real browser, with a coded checkpoint."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from playwright.sync_api import expect

from hlwq_cli.runtime import HLWQModel
from hlwq_cli.runtime.chat import Turn
from hlwq_cli.samples import sample_file

from .chat_page import ENDLESS, SHORT, greedy
from .conftest import Captions, OpenChat

LONGEST = 1900


@pytest.fixture(scope="module")
def model(measured_sample: Path) -> HLWQModel:
    torch.set_num_threads(1)
    return HLWQModel.from_pretrained(str(measured_sample), dtype="float32", device="cpu")


def test_answers_stream_and_are_those_of_the_model(open_chat: OpenChat, model: HLWQModel) -> None:
    one = greedy(open_chat, 48)
    one.ask(ENDLESS)
    assert one.pieces() > 5
    first = model.stream(ENDLESS, max_new_tokens=48)
    assert one.said() == "".join(first).strip()
    assert one.figures() == (first.tokens, "reached the maximum length")
    second = model.stream("We", max_new_tokens=48, history=[Turn("user", ENDLESS), Turn("assistant", one.said())])
    assert one.ask("We") == "".join(second).strip()
    assert one.figures()[0] == second.tokens


def test_system_prompt_reaches_the_model(open_chat: OpenChat, model: HLWQModel) -> None:
    one = greedy(open_chat)
    one.set("System prompt", "The treaty concluded with Spain.")
    assert one.ask("We") == model.generate("We", system="The treaty concluded with Spain.", max_new_tokens=SHORT)
    assert one.said() != model.generate("We", max_new_tokens=SHORT)


def test_uploaded_pictures_are_described_exactly(open_chat: OpenChat, captions: Captions) -> None:
    question, right = captions
    one = greedy(open_chat, 48)
    for name in ("picture-02.png", "picture-08.png"):
        one.attach(sample_file(f"eval/{name}"))
        assert one.ask(question) == right[name]
    expect(one.page.locator("[data-testid=user] img")).to_have_count(2)


def test_stop_ends_the_answer_and_keeps_its_text(open_chat: OpenChat, model: HLWQModel) -> None:
    one = greedy(open_chat, LONGEST)
    one.send(ENDLESS)
    one.streams()
    one.stop_button.click()
    one.wait()
    tokens, end = one.figures()
    assert end == "stopped"
    assert tokens < LONGEST / 2
    whole = model.generate(ENDLESS, max_new_tokens=tokens)
    assert isinstance(whole, str)
    assert whole.startswith(one.said())
    one.set("Maximum answer length, in tokens", 8)
    assert one.ask("We") != ""


def test_try_again_gives_a_new_answer_and_a_seed_repeats_it(open_chat: OpenChat) -> None:
    one = open_chat()
    one.set("Temperature", 1.5)
    one.set("Maximum answer length, in tokens", 24)
    one.set("Seed", 7)
    first = one.ask("The public debt")

    def again(seed: str) -> str:
        one.set("Seed", seed)
        one.page.get_by_role("button", name="Try again").click()
        expect(one.stop_button).to_be_visible()
        one.wait()
        return one.said()

    assert again("8") != first
    assert again("7") == first
    assert one.replies().count() == 1


def test_clear_discards_the_conversation(open_chat: OpenChat, model: HLWQModel) -> None:
    one = greedy(open_chat)
    fresh = one.ask("We are at peace with")
    one.clear()
    assert one.ask("We are at peace with") == fresh == model.generate("We are at peace with", max_new_tokens=SHORT)


def test_two_visitors_wait_for_each_other_and_see_only_their_own_chat(open_chat: OpenChat) -> None:
    one, two = greedy(open_chat, LONGEST), greedy(open_chat, 48)
    one.send(ENDLESS)
    one.streams()
    two.send("The state of our Union is")
    expect(two.replies().last).to_contain_text("1 person before you")
    whole = one.seconds(LONGEST)
    one.stop_button.click()
    stopped = time.monotonic()
    two.wait()
    assert time.monotonic() - stopped < whole / 2
    one.wait()
    tokens, end = one.figures()
    assert end == "stopped"
    assert tokens < LONGEST
    assert two.figures()[1] is None
    assert one.replies().count() == two.replies().count() == 1
    assert ENDLESS not in two.page.content()


def test_waiting_visitor_can_stop(open_chat: OpenChat) -> None:
    one, two = greedy(open_chat, LONGEST), greedy(open_chat)
    one.send(ENDLESS)
    one.streams()
    two.send("We")
    expect(two.replies().last).to_contain_text("1 person before you")
    two.stop_button.click()
    two.wait()
    assert two.parts() == ["stopped"]
    expect(one.stop_button).to_be_visible()
    one.stop_button.click()
    one.wait()


def test_closing_the_page_frees_the_model(open_chat: OpenChat) -> None:
    one, two = greedy(open_chat, LONGEST), greedy(open_chat)
    one.send(ENDLESS)
    one.streams()
    whole = one.seconds(LONGEST)
    one.page.close()
    closed = time.monotonic()
    assert two.ask("We") != ""
    assert time.monotonic() - closed < whole / 2


def test_seed_gives_the_same_answer_while_others_chat(open_chat: OpenChat) -> None:
    one, two = open_chat(), open_chat()
    for who, seed in ((one, "7"), (two, "9")):
        who.set("Temperature", 1.5)
        who.set("Maximum answer length, in tokens", SHORT)
        who.set("Seed", seed)
    alone = [who.ask("The public debt") for who in (one, two)]
    for who in (one, two):
        who.clear()
        who.send("The public debt")
    for who in (one, two):
        who.wait()
    assert [one.said(), two.said()] == alone
    assert alone[0] != alone[1]


def test_panel_describes_the_checkpoint(open_chat: OpenChat, measured_sample: Path) -> None:
    from hlwq_cli.checkpoint import inspect
    from hlwq_cli.sizes import format_size

    report, one = inspect(measured_sample), open_chat()
    panel = one.page.locator(".facts").inner_text()
    size = report.coded_bytes + report.kept_bytes
    for fact in (
        "sample-Q5", "5 bits", f"{report.bits_per_weight:.3f}", "default, blocks of 64",
        f"{format_size(size)}, {size / report.source_bytes:.0%} of bf16 ({format_size(report.source_bytes)})",
    ):  # fmt: skip
        assert fact in panel
    one.page.get_by_role("button", name="Measured against its source").click()
    chart = one.page.locator("#side img")
    expect(chart).to_be_visible()
    one.page.wait_for_function("document.querySelector('#side img').naturalWidth > 500")


def test_page_works_with_the_keyboard_alone(open_chat: OpenChat) -> None:
    one = greedy(open_chat, LONGEST)
    one.page.locator("body").click(position={"x": 2, "y": 2})
    keys = one.page.keyboard

    def tab_to(selector: str) -> None:
        for _ in range(40):
            if one.page.evaluate("s => document.activeElement.matches(s)", selector):
                return
            keys.press("Tab")
        raise AssertionError(f"Tab never reaches {selector}")

    tab_to("#message textarea")
    keys.type(ENDLESS)
    keys.press("Enter")
    expect(one.replies()).to_have_count(1)
    one.streams()
    tab_to("#message .stop-button")
    keys.press("Enter")
    one.wait()
    assert one.figures()[1] == "stopped"
    tab_to("#clear")
    outline = one.page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert float(outline.removesuffix("px")) >= 2
    keys.press("Enter")
    expect(one.replies()).to_have_count(0)


def test_page_fits_a_small_screen(open_chat: OpenChat) -> None:
    one = greedy(open_chat, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    assert one.page.evaluate("document.documentElement.scrollWidth") <= 390
    one.page.evaluate("scrollTo(0, 0)")
    for part in (one.box, one.send_button, one.page.locator("#clear")):
        found = part.bounding_box()
        assert found
        assert found["x"] >= 0
        assert found["x"] + found["width"] <= 390
        assert found["y"] + found["height"] <= 844
    assert one.ask("We are at peace with") != ""
    assert one.page.evaluate("document.documentElement.scrollWidth") <= 390


CONTRAST = """element => {
  const channels = c => c.match(/[\\d.]+/g).map(Number);
  const light = c => { const [r, g, b] = channels(c).slice(0, 3).map(v => (v /= 255) <= .03928 ? v / 12.92
    : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
  let under = element;
  while (under && (channels(getComputedStyle(under).backgroundColor)[3] ?? 1) < 1) under = under.parentElement;
  const [a, b] = [light(getComputedStyle(element).color), light(getComputedStyle(under).backgroundColor)];
  return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), b];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_enough_contrast(open_chat: OpenChat, scheme: str) -> None:
    one = greedy(open_chat, 16, color_scheme=scheme)
    one.ask("We are at peace with")
    texts = {
        "question": "[data-testid=user] p",
        "answer": "[data-testid=bot] p",
        "figures": ".bot.message .message + .message p",
        "fact": ".facts dd",
        "label": ".facts dt",
        "title": "h1",
        "subtitle": "#headline p",
    }
    for name, selector in texts.items():
        contrast, background = one.page.locator(selector).first.evaluate(CONTRAST)
        assert contrast >= 4.5, name
        assert (background < 0.2) == (scheme == "dark"), name
