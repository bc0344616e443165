"""Serving the page: on this machine only, or with --share through Gradio's tunnel, behind a login."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from ...errors import HlwqError, UsageError

HOST = "127.0.0.1"
USER = "hlwq"


@dataclass(frozen=True)
class Access:
    """Who may open the page.

    Attributes:
        share: whether a public address is made.
        login: user and password, or None for whoever can reach it.
        generated: whether the password was made here, and must be told.
    """

    share: bool
    login: tuple[str, str] | None
    generated: bool = False


@dataclass(frozen=True)
class Address:
    """Where the page is."""

    url: str
    share_url: str | None


def choose_access(share: bool, open_to_all: bool, auth: str | None) -> Access:
    """The login that was given, one made up where the page is shared, or none.

    Raises:
        UsageError: --open without --share or with a login; a login that is not user:password.
    """
    if open_to_all and (auth or not share):
        other = "a login is given too" if auth else "the page is not shared"
        raise UsageError(f"--open lets anybody in who has the address, but {other}.", "Leave it out.")
    if auth:
        user, colon, password = auth.partition(":")
        if not (user and colon and password):
            raise UsageError("The login is not user:password.", "Write it so in HLWQ_DEMO_AUTH or --auth.")
        return Access(share, (user, password))
    if share and not open_to_all:
        return Access(share, (USER, secrets.token_urlsafe(16)), generated=True)
    return Access(share, None)


def check_gradio() -> None:
    """Raise HlwqError where gradio is not installed."""
    if find_spec("gradio") is None:
        raise HlwqError("gradio is not installed.", "Install it with `pip install 'hlwq[demo]'`.")


def check_port(port: int | None) -> None:
    """Raise HlwqError where something listens on `port`: before a model is loaded for nothing."""
    if port is None:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except PermissionError as error:
            raise HlwqError(f"Port {port} needs rights you do not have.", "Give one from 1024 up.") from error
        except OSError as error:
            raise HlwqError(f"Port {port} is in use.", "Give another --port, or none to have a free one.") from error


@contextmanager
def gradio_environment() -> Iterator[None]:
    """What gradio takes from its environment: it reports nothing, and what people drop in is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="hlwq-demo-") as folder:
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        yield


@contextmanager
def served(page: Any, access: Access, port: int | None) -> Iterator[Address]:
    """Serve a page until the block ends.

    Raises:
        HlwqError: the port was taken meanwhile; the tunnel cannot be made, in which case nothing is served.
    """
    said = io.StringIO()  # gradio prints, and stdout is for the result
    try:
        with contextlib.redirect_stdout(said):
            address = _launch(page, access, port)
        yield address
    finally:
        with contextlib.redirect_stdout(said):
            _close(page)


def _launch(page: Any, access: Access, port: int | None) -> Address:
    from starlette.middleware import Middleware

    from .headers import Headers
    from .images import MAX_UPLOAD
    from .page import CSS, theme

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
            app_kwargs={"middleware": [Middleware(Headers)]},
        )
    except OSError as error:
        raise HlwqError(f"No port could be had: {error}", "Give another --port.") from error
    if access.share and not share_url:
        raise HlwqError(
            "Gradio's tunnel could not be made, so the page is not shared.",
            "Check the network, or leave --share out to serve this machine only.",
        )
    page.share = False  # else the page would load its scripts from a store of Gradio's
    return Address(url, share_url)


def _reach_loopback_directly() -> None:
    """Gradio looks whether its server answers, and must not ask a proxy for it."""
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), HOST, "localhost")))


def _close(page: Any) -> None:
    from gradio.tunneling import CURRENT_TUNNELS

    for tunnel in CURRENT_TUNNELS:
        tunnel.kill()  # type: ignore[no-untyped-call]
    page.close(verbose=False)
