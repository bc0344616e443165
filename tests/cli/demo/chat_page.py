"""The page of `hlwq demo` in a browser: what a visitor sees and clicks."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from playwright.sync_api import BrowserContext, Locator, Page, Request, expect

FIGURES = re.compile(r"(\d+) tokens? · ([\d.]+) tok/s · [\d.]+ [MG]B memory(?: · (.+))?")
TIMEOUT_MS = 20_000
SHORT = 16
"""Tokens of an answer that need not be long: each takes the server and the browser time."""
expect.set_options(timeout=TIMEOUT_MS)
ENDLESS = "1790 1791 1792 1793 1794 1795"
"""A prompt that the sample continues with counting, until the maximum answer length."""


def log_in(page: Page, user: str, password: str) -> None:
    """Fill in the login page."""
    page.get_by_label("username").fill(user)
    page.get_by_label("password").fill(password)
    page.get_by_role("button", name="Login").click()


RECORDER = """
window.seen = [[], []];
new MutationObserver(() => document.querySelectorAll('[aria-label="chatbot conversation"]').forEach((chat, i) => {
  const said = [...chat.querySelectorAll('.bot.message')].at(-1)?.querySelector('.message-content')?.innerText.trim();
  if (said && said !== window.seen[i].at(-1)) window.seen[i].push(said);
})).observe(document, {childList: true, characterData: true, subtree: true});
"""


class ChatPage:
    """One visitor of the page."""

    def __init__(
        self,
        context: BrowserContext,
        url: str,
        login: tuple[str, str] | None = None,
        on_request: Callable[[Request], None] = lambda request: None,
        on_error: Callable[[str], None] = lambda error: None,
        color_scheme: Literal["light", "dark"] = "light",
    ) -> None:
        self.page: Page = context.new_page()
        self.page.on("request", on_request)
        self.page.on("pageerror", lambda error: on_error(str(error)))
        self.page.set_default_timeout(TIMEOUT_MS)
        self.page.add_init_script(RECORDER)
        self.page.emulate_media(color_scheme=color_scheme)
        self.page.goto(url)
        if login:
            log_in(self.page, *login)
        self.box = self.page.locator("#message textarea")
        self.send_button = self.page.locator("#message .submit-button")
        self.stop_button = self.page.locator("#message .stop-button")
        expect(self.send_button).to_be_visible()

    def set(self, label: str, value: float | str) -> None:
        """Set a number or a text in the settings."""
        number = self.page.get_by_label(f"number input for {label}")
        field = number.or_(self.page.get_by_role("textbox", name=label))
        field.fill(str(value))
        field.press("Tab")

    def attach(self, *files: Path) -> None:
        """Attach files to the message; return when the page shows them."""
        before = self.page.get_by_label("File thumbnail").count()
        self.page.set_input_files("#message input[type=file]", [str(f) for f in files])
        expect(self.page.get_by_label("File thumbnail")).to_have_count(before + len(files))

    def send(self, text: str) -> None:
        """Send a message; return when it is in the conversation."""
        before = self.replies().count()
        self.box.fill(text)
        self.box.press("Enter")
        expect(self.replies()).to_have_count(before + 1)

    def clear(self) -> None:
        """Clear the conversation."""
        self.page.get_by_role("button", name="Clear").last.click()
        expect(self.replies()).to_have_count(0)

    def wait(self) -> None:
        """Wait until the answer is complete."""
        expect(self.send_button).to_be_visible()

    def ask(self, text: str) -> str:
        """Send a message, wait for the answer and return it."""
        self.send(text)
        self.wait()
        return self.said()

    def replies(self, chat: int = 0) -> Locator:
        """Return the answers of a model."""
        return self.page.locator('[aria-label="chatbot conversation"]').nth(chat).locator(".bot.message")

    def parts(self, chat: int = 0) -> list[str]:
        """Return the parts of the last answer: its text, and the line below it."""
        return [t.strip() for t in self.replies(chat).last.locator(".message-content").all_inner_texts()]

    def said(self, chat: int = 0) -> str:
        """Return the text of the last answer."""
        return self.parts(chat)[0]

    def figures(self, chat: int = 0) -> tuple[int, str | None]:
        """Return the number of tokens of the last answer, and why it ended if that is shown."""
        match = FIGURES.fullmatch(self.parts(chat)[-1])
        assert match, self.parts(chat)
        return int(match[1]), match[3]

    def seconds(self, tokens: int) -> float:
        """Return the seconds that `tokens` tokens take at the speed shown for the last answer."""
        match = FIGURES.fullmatch(self.parts()[-1])
        assert match, self.parts()
        return tokens / float(match[2])

    def pieces(self, chat: int = 0) -> int:
        """Return how many prefixes of the last answer were visible while it was streamed."""
        seen: list[str] = self.page.evaluate("i => window.seen[i]", chat)
        return sum(self.said(chat).startswith(text) for text in {*seen})

    def streams(self, chat: int = 0) -> None:
        """Wait until the last answer is visible and grows."""
        reply = self.replies(chat).last
        expect(reply).to_contain_text("tok/s")
        seen = reply.inner_text()
        expect(reply).not_to_have_text(seen)


def greedy(open_page: Callable[..., ChatPage], length: int = SHORT, **options: object) -> ChatPage:
    """Open a page with greedy decoding and a maximum answer length in tokens."""
    one = open_page(**options)
    one.set("Temperature", 0)
    one.set("Maximum answer length, in tokens", length)
    return one
