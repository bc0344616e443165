"""Invalid and hostile input to the page: it shows a message, and the server keeps running."""

from __future__ import annotations

from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

import pytest
from PIL import Image
from playwright.sync_api import BrowserContext, expect

from .chat_page import ChatPage, greedy
from .conftest import Captions, OpenChat
from .demo_server import DemoServer

DIRECT = build_opener(ProxyHandler({}))
ELSEWHERE = "http://127.0.0.9:9/x.png"


def assert_error_shown(one: ChatPage, text: str) -> None:
    """Check that the page shows an error and still answers."""
    expect(one.page.get_by_test_id("toast-body").filter(has_text=text).first).to_be_visible()


def test_file_that_is_not_a_picture_shows_an_error(open_chat: OpenChat, tmp_path: Path) -> None:
    (tmp_path / "holiday.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    one = greedy(open_chat)
    one.attach(tmp_path / "holiday.png")
    one.box.fill("What is in the picture?")
    one.box.press("Enter")
    assert_error_shown(one, "holiday.png is not a picture that can be read.")
    expect(one.box).to_have_value("What is in the picture?")
    expect(one.replies()).to_have_count(0)
    one.page.get_by_label("Remove file").click()
    assert one.ask("We") != ""


def test_picture_with_too_many_pixels_shows_an_error(open_chat: OpenChat, tmp_path: Path) -> None:
    Image.new("1", (9000, 9000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 50_000
    one = greedy(open_chat)
    one.attach(tmp_path / "bomb.png")
    one.box.press("Enter")
    assert_error_shown(one, "bomb.png has more than 50 megapixels.")


def test_rotated_and_transparent_picture_is_read_as_it_looks(
    open_chat: OpenChat, tmp_path: Path, captions: Captions
) -> None:
    from hlwq_cli.samples import sample_file

    question, right = captions
    turned = Image.open(sample_file("eval/picture-02.png")).convert("RGBA").transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its left side
    turned.save(tmp_path / "phone.webp", lossless=True, exif=exif)
    one = greedy(open_chat, 48)
    one.attach(tmp_path / "phone.webp")
    assert one.ask(question) == right["picture-02.png"]


def test_upload_of_a_hundred_megabytes_shows_an_error(open_chat: OpenChat, server: DemoServer, tmp_path: Path) -> None:
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(100_000_000)
    one = greedy(open_chat)
    one.page.set_input_files("#message input[type=file]", str(tmp_path / "huge.png"))
    assert_error_shown(one, "exceed the maximum allowed size")
    assert one.ask("We") != ""
    assert post(f"{server.url}gradio_api/upload", "huge.png", b"\0" * 25_000_000) == 413


def test_prompt_longer_than_the_context_shows_an_error(open_chat: OpenChat) -> None:
    one = greedy(open_chat)
    assert "the context of this model is 2,048" in one.ask("We " * 2100)
    assert len(one.parts()) == 1
    one.clear()
    assert "the context of" not in one.ask("We")


def test_empty_message_shows_an_error(open_chat: OpenChat) -> None:
    one = greedy(open_chat)
    one.box.fill("   ")
    one.box.press("Enter")
    assert_error_shown(one, "The message is empty.")
    expect(one.replies()).to_have_count(0)


def test_try_again_without_an_answer_shows_an_error(open_chat: OpenChat) -> None:
    one = greedy(open_chat)
    one.page.locator("#retry").click()
    assert_error_shown(one, "There is no answer to try again.")


def test_seed_that_is_not_a_number_shows_an_error(open_chat: OpenChat) -> None:
    one = greedy(open_chat)
    one.set("Seed", "abc")
    one.box.fill("We")
    one.box.press("Enter")
    assert_error_shown(one, "The seed 'abc' is not a whole number.")
    expect(one.replies()).to_have_count(0)
    one.set("Seed", "")
    assert "seed" not in one.ask("We")


def test_image_token_without_a_picture_does_no_harm(open_chat: OpenChat) -> None:
    one = greedy(open_chat)
    one.ask("<|image|> What is in the picture?")
    one.clear()
    assert one.ask("We") != ""


def test_markup_in_messages_loads_and_runs_nothing(usual: BrowserContext, server: DemoServer) -> None:
    one = ChatPage(usual, server.url)
    failed: list[tuple[str, str | None]] = []
    one.page.on("requestfailed", lambda request: failed.append((request.url, request.failure)))
    one.set("Maximum answer length, in tokens", 4)
    one.ask(f'![x]({ELSEWHERE}) <img src="no" onerror="window.hacked = 1"><script>window.hacked = 1</script>')
    assert (ELSEWHERE, "csp") in failed
    assert one.page.evaluate("window.hacked") is None
    one.page.close()


@pytest.mark.parametrize("path", ["/etc/passwd", "../../../../etc/passwd"])
def test_server_does_not_send_other_files(server: DemoServer, path: str) -> None:
    with pytest.raises(HTTPError) as refused:
        DIRECT.open(f"{server.url}gradio_api/file={path}", timeout=30)
    assert refused.value.code in (403, 404)
    refused.value.close()


def post(url: str, name: str, data: bytes) -> int:
    """Upload a file without the page; return the HTTP status.

    The server may refuse a file before it has read it, and end the connection: the answer is there all the same.
    """
    head = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    where = urlsplit(url)
    assert where.hostname is not None
    connection = HTTPConnection(where.hostname, where.port, timeout=30)
    try:
        with suppress(ConnectionResetError, BrokenPipeError):
            kind = {"Content-Type": "multipart/form-data; boundary=b"}
            connection.request("POST", where.path, head.encode() + data + b"\r\n--b--\r\n", kind)
        response = connection.response_class(connection.sock, method="POST")
        response.begin()
        return response.status
    finally:
        connection.close()
