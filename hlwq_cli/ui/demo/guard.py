"""Requests that the server refuses: from pages of other sites, for other hosts, too large, or too many logins."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse

from .pictures import MAX_IMAGES, MAX_UPLOAD_BYTES

Scope = MutableMapping[str, Any]
Application = Callable[..., Awaitable[None]]

LOCAL_HOSTS = ["127.0.0.1", "localhost"]
MAX_BODY_BYTES = 16 * 2**20  # a message of the maximum length, with every character escaped
MAX_UPLOADS_BYTES = 2 * 10**9
_MAX_UPLOAD_BODY = MAX_IMAGES * MAX_UPLOAD_BYTES + 2**20
_API = "/gradio_api/"
_UNUSED = tuple(_API + name for name in (
    "deep_link", "dev/", "mcp", "process_recording", "profiling", "proxy=", "run-history", "runs", "stream", "vibe",
    "undo-vibe",
))  # fmt: skip
"""Addresses of Gradio that the page does not use; some write files or ask other hosts."""


class Guard:
    """ASGI middleware that refuses requests before Gradio sees them.

    A page of another site could send requests through the browser of somebody who uses the demo: the browser names that
    page in `Origin`, and, where the site's name was changed to lead to this machine, in `Host`.
    """

    def __init__(self, app: Application, page: Any, shared: bool, uploads: Path) -> None:
        """Guard `app`.

        Args:
            app: the server.
            page: Gradio's page, which knows its public address once it has one.
            shared: whether it gets a public address. Then any Host may be asked for, as a login or nothing protects it.
            uploads: folder of uploaded files.
        """
        limited = RequestBodyLimitMiddleware(app, MAX_BODY_BYTES)
        uploading = RequestBodyLimitMiddleware(app, _MAX_UPLOAD_BODY)
        self._logins = LoginLimit()

        async def routed(scope: Scope, receive: Any, send: Any) -> None:
            path, is_post = scope["path"].rstrip("/"), scope["method"] == "POST"
            public = urlsplit(page.share_url or "").netloc if shared else ""
            refusal = _refusal(scope, public)
            if refusal is not None:
                await refusal(scope, receive, send)
            elif path == _API + "upload":
                await asyncio.to_thread(remove_oldest, uploads, MAX_UPLOADS_BYTES)
                await uploading(scope, receive, send)
            elif path == "/login" and is_post:
                await self._logins.attempt(limited, scope, receive, send)
            elif path == "/logout":
                await limited({**scope, "method": "GET"}, receive, send)  # Gradio takes GET only
            else:
                await limited(scope, receive, send)

        hosts = ["*"] if shared else LOCAL_HOSTS
        self._app: Application = TrustedHostMiddleware(routed, allowed_hosts=hosts, www_redirect=False)
        self._unguarded = app

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Handle or refuse a request."""
        app = self._app if scope["type"] == "http" else self._unguarded
        await app(scope, receive, send)


def _refusal(scope: Scope, public: str) -> PlainTextResponse | None:
    headers, path = Headers(scope=scope), scope["path"]
    origin = headers.get("origin")
    if origin is not None and _host(origin) not in {headers.get("host"), public or None}:
        return PlainTextResponse("This page may not use the demo.", 403)
    if path.startswith(_UNUSED):
        return PlainTextResponse("Not found", 404)
    if path.rstrip("/") == "/logout" and scope["method"] != "POST":
        return PlainTextResponse("Log out with POST.", 405, headers={"allow": "POST"})
    return None


def _host(origin: str) -> str:
    """Return the host and port of an address, empty where it has none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


class LoginLimit:
    """Slows logins after failures, of all visitors together, as a tunnel hides who they are.

    The first attempts are free. Each later one waits twice as long as the one before, up to `longest` seconds. One
    attempt waits at a time; meanwhile others are refused.
    """

    def __init__(self, free: int = 5, longest: float = 30.0) -> None:
        self._free, self._longest = free, longest
        self._failures = 0
        self._last = 0.0
        self._is_busy = False

    def seconds_to_wait(self) -> float:
        """Return how long the next attempt has to wait."""
        if self._failures < self._free:
            return 0.0
        delay = min(2.0 ** min(self._failures - self._free, 16), self._longest)
        return max(0.0, self._last + delay - time.monotonic())

    async def attempt(self, app: Application, scope: Scope, receive: Any, send: Any) -> None:
        """Handle a login when its time has come, and count it if it fails."""
        wait = self.seconds_to_wait()
        if self._is_busy:
            refusal = PlainTextResponse("Too many attempts.", 429, headers={"retry-after": str(round(wait) + 1)})
            await refusal(scope, receive, send)
            return

        async def counted(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                succeeded = message["status"] < 400
                self._failures = 0 if succeeded else self._failures + 1
                self._last = time.monotonic()
            await send(message)

        self._is_busy = True
        try:
            await asyncio.sleep(wait)
            await app(scope, receive, counted)
        finally:
            self._is_busy = False


def remove_oldest(folder: Path, max_bytes: int) -> None:
    """Remove the oldest uploads until the folder holds less than `max_bytes`; shrunk pictures of conversations stay."""
    found = []
    for place, _, names in os.walk(folder):
        if not os.path.basename(place).startswith("kept-"):
            for name in names:
                path = Path(place) / name
                try:
                    found.append((path.stat().st_mtime, path.stat().st_size, path))
                except OSError:  # gone already
                    continue
    held = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if held < max_bytes:
            return
        path.unlink(missing_ok=True)
        held -= size
