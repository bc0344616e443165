"""`hlwq demo` without its page: ports, logins, the tunnel, missing packages and models."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

from hlwq_cli.ui.demo.serve import Access, Address, choose_access
from hlwq_cli.ui.demo_address import show_demo, show_login
from hlwq_cli.ui.sink import Format, Sink
from tests.cli.run_command import assert_refused, environment, hlwq, hlwq_process

from .demo_server import NOWHERE


def test_port_in_use_is_refused_before_a_model_is_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert_refused(hlwq("demo", "no/such-model", "--port", str(port)), 1, f"Port {port} is in use.", "--port")


def test_unsupported_widths_are_refused_before_a_model_is_loaded() -> None:
    assert_refused(hlwq("demo", "no/such-model", "--kv-bits", "9"), 2, "'9' is not a valid width of keys and values.")


def test_invalid_gpu_memory_is_refused_before_a_model_is_loaded() -> None:
    assert_refused(hlwq("demo", "no/such-model", "--gpu-memory", "much"), 2, "'much' is not a size.")


def test_missing_gradio_names_the_package_to_install() -> None:
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
        (["--open"], "--share is not given."),
        (["--open", "--share", "--auth", "a:b"], "but a login is given."),
        (["--auth", "nocolon"], "not USER:PASSWORD"),
        (["--auth", ":secret"], "not USER:PASSWORD"),
        (["--auth", "ann:"], "not USER:PASSWORD"),
    ],
)
def test_invalid_options_are_refused(options: list[str], says: str) -> None:
    ran = hlwq("demo", "sample", *options)
    assert_refused(ran, 2, says)
    assert "secret" not in ran.err


def test_a_missing_model_is_not_found() -> None:
    ran = hlwq("demo", "./nowhere")
    assert (ran.code, ran.out) == (3, "")
    assert "There is no folder ./nowhere." in ran.err


def test_login_is_given_generated_or_none() -> None:
    assert choose_access(False, False, None) == Access(False, None)
    assert choose_access(True, True, None) == Access(True, None)
    assert choose_access(False, False, "ann:a:b") == Access(False, ("ann", "a:b"))
    made = [choose_access(True, False, None) for _ in range(2)]
    assert all(a.generated and a.login is not None and len(a.login[1]) >= 20 for a in made)
    assert made[0] != made[1]


def test_result_in_every_form(capsys: pytest.CaptureFixture[str]) -> None:
    address = Address("http://127.0.0.1:7860/", "https://x.example")
    show_demo(Sink(Format.json), address)
    written = capsys.readouterr()
    assert json.loads(written.out) == {
        "schema": 1,
        "command": "demo",
        "url": "http://127.0.0.1:7860/",
        "share_url": "https://x.example",
    }
    show_demo(Sink(Format.quiet), address)
    show_login(Sink(Format.quiet), Access(True, ("hlwq", "s3cret"), generated=True))
    written = capsys.readouterr()
    assert written.out == "https://x.example\n"
    assert written.err == "Login: hlwq, password s3cret (not shown again)\n"


def test_help_does_not_show_the_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HLWQ_DEMO_AUTH", "ann:s3cret")
    ran = hlwq("demo", "--help")
    assert "HLWQ_DEMO_AUTH" in ran.out
    assert "s3cret" not in ran.out


def test_failed_tunnel_serves_nothing() -> None:
    proxies = {"HTTPS_PROXY": NOWHERE, "HTTP_PROXY": NOWHERE}
    ran = hlwq_process("demo", "sample", "--share", "-q", env=environment(**proxies))
    assert (ran.code, ran.out) == (1, "")
    what, hint = ran.err.splitlines()[-2:]
    assert what == "Error: Gradio's tunnel could not be created, so the page is not shared."
    assert hint == "Check the network, or omit --share to serve on this machine only."
    assert "password" not in ran.err
