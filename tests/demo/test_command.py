"""`hlwq demo` before and around its page: ports, logins, the tunnel, what is missing."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, ProxyHandler, build_opener

import pytest

from hlwq_cli.ui.demo.serve import Access, Address, choose_access
from hlwq_cli.ui.show_demo import show_demo, show_login
from hlwq_cli.ui.sink import Format, Sink
from tests.cli.run import assert_refused, environment, hlwq

from .server import NOWHERE, demo


def test_a_port_in_use_is_said_before_a_model_is_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert_refused(hlwq("demo", "no/such-model", "--port", str(port)), 1, f"Port {port} is in use.", "--port")


def test_gradio_missing_names_what_to_install() -> None:
    code = (
        "import sys; sys.modules['gradio'] = None; sys.argv = ['hlwq', 'demo', 'sample']\n"
        "from hlwq_cli.main import main\nmain()"
    )
    ran = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == "Error: gradio is not installed.\nInstall it with `pip install 'hlwq[demo]'`.\n"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--open"], "the page is not shared"),
        (["--open", "--share", "--auth", "a:b"], "a login is given too"),
        (["--auth", "nocolon"], "not user:password"),
        (["--auth", ":secret"], "not user:password"),
        (["--auth", "ann:"], "not user:password"),
    ],
)
def test_options_that_cannot_be_meant(options: list[str], says: str) -> None:
    ran = hlwq("demo", "sample", *options)
    assert_refused(ran, 2, says)
    assert "secret" not in ran.err


def test_a_missing_model_is_not_found() -> None:
    ran = hlwq("demo", "./nowhere")
    assert (ran.code, ran.out) == (3, "")
    assert "There is no folder ./nowhere." in ran.err


def test_logins() -> None:
    assert choose_access(False, False, None) == Access(False, None)
    assert choose_access(True, True, None) == Access(True, None)
    assert choose_access(False, False, "ann:a:b") == Access(False, ("ann", "a:b"))
    made = [choose_access(True, False, None) for _ in range(2)]
    assert all(a.generated and a.login is not None and len(a.login[1]) >= 20 for a in made)
    assert made[0] != made[1]


def test_result_in_every_form(capsys: pytest.CaptureFixture[str]) -> None:
    address = Address("http://127.0.0.1:7860/", "https://x.example")
    show_demo(Sink(Format.json), address)
    told = capsys.readouterr()
    assert json.loads(told.out) == {
        "schema": 1, "command": "demo", "url": "http://127.0.0.1:7860/", "share_url": "https://x.example",
    }  # fmt: skip
    show_demo(Sink(Format.quiet), address)
    show_login(Sink(Format.quiet), Access(True, ("hlwq", "s3cret"), generated=True))
    told = capsys.readouterr()
    assert told.out == "https://x.example\n"
    assert told.err == "Login: hlwq, password s3cret (not shown again)\n"


def test_help_does_not_show_the_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HLWQ_DEMO_AUTH", "ann:s3cret")
    ran = hlwq("demo", "--help")
    assert "HLWQ_DEMO_AUTH" in ran.out
    assert "s3cret" not in ran.out


def test_a_tunnel_that_cannot_be_made_serves_nothing() -> None:
    proxies = {"HTTPS_PROXY": NOWHERE, "HTTP_PROXY": NOWHERE}
    ran = subprocess.run(
        [sys.executable, "-m", "hlwq_cli.main", "demo", "sample", "--share", "-q"],
        env=environment(**proxies), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (1, "")
    what, hint = ran.stderr.splitlines()[-2:]
    assert what == "Error: Gradio's tunnel could not be made, so the page is not shared."
    assert hint == "Check the network, or leave --share out to serve this machine only."
    assert "password" not in ran.stderr


def test_a_shared_page_has_a_login_shown_once(tmp_path: Path) -> None:
    """Gradio's own server cannot be reached here; a script stands in for the program that talks to it."""
    from gradio.tunneling import BINARY_FILENAME

    program = tmp_path / "gradio" / "frpc" / BINARY_FILENAME
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "start proxy success: http://share.example/$5"\nexec sleep 600\n')
    program.chmod(0o755)
    with demo("sample", "--share", HF_HOME=str(tmp_path), GRADIO_SHARE_SERVER_ADDRESS="127.0.0.1:9") as server:
        port = server.url.removeprefix("https://share.example/")
        page = f"http://127.0.0.1:{port}/"
        browse = build_opener(ProxyHandler({}), HTTPCookieProcessor())
        with pytest.raises(HTTPError) as refused:
            browse.open(f"{page}config", timeout=30)
        assert refused.value.code == 401
        refused.value.close()
        login = re.search(r"^Login: (\S+), password (\S+) \(not shown again\)$", "".join(server.err), re.MULTILINE)
        assert login
        form = urlencode({"username": login[1], "password": login[2]}).encode()
        browse.open(f"{page}login", form, timeout=30).close()
        with browse.open(f"{page}config", timeout=30) as reply:
            assert reply.status == 200
        _, out, err = server.end()
    assert out == f"https://share.example/{port}\n{page}\n"
    assert (out + err).count(login[2]) == 1
