"""The stand-in Hub as a running server, and the knobs a test turns."""

from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from .replies import Reply, error
from .routes import Asked, answer
from .store import Repo, Request


class HubServer:
    """Serves `repos` on a free port of loopback until the process ends.

    Attributes:
        repos: by id; see `publish`.
        tokens: that are known and have accepted every gate.
        requests: everything asked since `reset`.
        ranges: false makes it a mirror that always sends whole files.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.tokens: set[str] = set()
        self.requests: list[Request] = []
        self.ranges = True
        self._faults: list[tuple[re.Pattern[str], int]] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._http.daemon_threads = True
        self._http.hub = self  # type: ignore[attr-defined]
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    @property
    def storage(self) -> str:
        """Large files come from another host name, to which no token may go."""
        return f"http://localhost:{self._http.server_port}"

    def environment(self, home: Path) -> dict[str, str]:
        """What makes huggingface_hub talk to this server and keep its cache under `home`."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def reset(self) -> None:
        self.repos.clear()
        self.tokens.clear()
        self.requests.clear()
        self.ranges = True
        self._faults.clear()

    def publish(self, repo: str, folder: Path, revision: str = "main", **who: bool) -> Repo:
        """Serve a folder as a revision of a repository; `gated` and `private` are true or false."""
        entry = self.repos.setdefault(repo, Repo(repo, **who))
        entry.revisions[revision] = folder
        return entry

    def fail(self, pattern: str, status: int) -> None:
        """Answer `status` to every request whose path `pattern` is found in; 0 drops the connection."""
        self._faults.append((re.compile(pattern), status))

    def bytes_sent(self, pattern: str) -> int:
        """Bytes of bodies sent for paths that `pattern` is found in."""
        return sum(r.sent for r in self.requests if re.search(pattern, r.path))

    def reply(self, target: str, headers: Any) -> Reply | None:
        """The reply to a request; None drops the connection."""
        asked = Asked.parse(target, headers if self.ranges else {**headers, "Range": ""})
        for pattern, status in self._faults:
            if pattern.search(asked.path):
                return error(status, "", "Internal Error") if status else None
        return answer(self.repos, self.tokens, self.storage, asked)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve(with_body=True)

    def do_HEAD(self) -> None:
        self._serve(with_body=False)

    def _serve(self, with_body: bool) -> None:
        hub: HubServer = self.server.hub  # type: ignore[attr-defined]
        reply = hub.reply(self.path, self.headers)
        asked = Asked.parse(self.path, self.headers)
        sent = len(reply.body) if reply is not None and with_body else 0
        status = reply.status if reply is not None else 0
        hub.requests.append(Request(self.command, asked.path, asked.range, asked.token, status, sent))
        if reply is None:
            self.close_connection = True
            return
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(reply.body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: `requests` has it."""
