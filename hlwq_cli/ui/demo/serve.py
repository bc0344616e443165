"""Serve the page: on this machine only, or with --share through Gradio's tunnel, protected by a login."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...errors import HlwqError, UsageError

HOST = "127.0.0.1"
USER = "hlwq"
_MAX_SESSIONS = 1000


@dataclass(frozen=True)
class Access:
    """Who may open the page.

    Attributes:
        share: whether to create a public address.
        login: user and password, or None for no login.
        generated: whether the password was generated here and must be shown.
    """

    share: bool
    login: tuple[str, str] | None
    generated: bool = False


@dataclass(frozen=True)
class Address:
    """The addresses of the page: the local one, and the public one if it is shared."""

    url: str
    share_url: str | None


def choose_access(share: bool, open_to_all: bool, auth: str | None) -> Access:
    """Return the given login, a generated one if the page is shared, or none.

    Raises:
        UsageError: --open without --share or with a login, or a login that is not USER:PASSWORD.
    """
    if open_to_all and (auth or not share):
        other = "a login is given" if auth else "--share is not given"
        raise UsageError(f"--open shares the page without a login, but {other}.", "Omit --open.")
    if auth:
        user, colon, password = auth.partition(":")
        if not (user and colon and password):
            raise UsageError("The login is not USER:PASSWORD.", "Use that form in HLWQ_DEMO_AUTH or --auth.")
        return Access(share, (user, password))
    if share and not open_to_all:
        return Access(share, (USER, secrets.token_urlsafe(16)), generated=True)
    return Access(share, None)


def check_gradio() -> None:
    """Raise HlwqError if gradio is not installed."""
    if find_spec("gradio") is None:
        raise HlwqError("gradio is not installed.", "Install it with `pip install 'hlwq[demo]'`.")


def check_port(port: int | None) -> None:
    """Raise HlwqError if `port` is in use; checked before a model is loaded."""
    if port is None:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except PermissionError as error:
            raise HlwqError(f"You are not allowed to use port {port}.", "Use a port from 1024 up.") from error
        except OSError as error:
            raise HlwqError(f"Port {port} is in use.", "Use another --port, or omit it to get a free one.") from error


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the context as Ctrl-C does, so that its temporary files are removed.

    A signal that is ignored, as under nohup, stays so.
    """
    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


@contextmanager
def gradio_environment() -> Iterator[None]:
    """Set Gradio's environment variables: no analytics, and a temporary folder for uploads, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="hlwq-demo-") as folder:
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        yield


@contextmanager
def served(page: Any, access: Access, port: int | None) -> Iterator[Address]:
    """Serve a page until the context ends.

    Raises:
        HlwqError: the port is in use, or the tunnel cannot be created. Then nothing is served.
    """
    printed = io.StringIO()  # Gradio prints messages, but stdout is for the result
    try:
        with contextlib.redirect_stdout(printed):
            address = _launch(page, access, port)
        yield address
    finally:
        with contextlib.redirect_stdout(printed):
            _close(page)


def _launch(page: Any, access: Access, port: int | None) -> Address:
    from starlette.middleware import Middleware

    from .guard import Guard
    from .headers import Headers
    from .page import CSS, theme
    from .pictures import MAX_UPLOAD

    uploads = Path(os.environ["GRADIO_TEMP_DIR"])
    guard = Middleware(Guard, page=page, shared=access.share, uploads=uploads)
    _reach_loopback_directly()
    page.queue(api_open=False)
    try:
        _, url, share_url = page.launch(
            server_name=HOST,
            server_port=port,
            share=access.share,
            auth=access.login,
            max_file_size=MAX_UPLOAD,
            prevent_thread_lock=True,
            quiet=True,
            inbrowser=False,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            theme=theme(),
            css_paths=CSS,
            state_session_capacity=_MAX_SESSIONS,
            app_kwargs={"middleware": [Middleware(Headers), guard]},
        )
    except OSError as error:
        raise HlwqError(f"There is no free port: {error}", "Use another --port.") from error
    if access.share and not share_url:
        raise HlwqError(
            "Gradio's tunnel could not be created, so the page is not shared.",
            "Check the network, or omit --share to serve on this machine only.",
        )
    page.share = False  # otherwise the page would load its scripts from Gradio's CDN
    return Address(url, share_url)


def _reach_loopback_directly() -> None:
    """Bypass proxies for the loopback address, where Gradio checks whether its server answers."""
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), HOST, "localhost")))


def _close(page: Any) -> None:
    from gradio.tunneling import CURRENT_TUNNELS

    for tunnel in CURRENT_TUNNELS:
        tunnel.kill()  # type: ignore[no-untyped-call]
    page.close(verbose=False)
