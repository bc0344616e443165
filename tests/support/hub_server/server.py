"""The stand-in Hub as a running server, and the knobs a test turns."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from .replies import Reply, error
from .routes import Asked, answer
from .store import Account, Repo, Request
from .writes import Writes


@dataclass
class _Fault:
    """What is done to requests whose path `pattern` is found in, `times` times."""

    pattern: re.Pattern[str]
    status: int
    times: int
    headers: dict[str, str]


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
        self.accounts: dict[str, Account] = {}
        self._faults: list[_Fault] = []
        self._cuts: list[tuple[re.Pattern[str], int, int]] = []
        self._delays: list[tuple[re.Pattern[str], float]] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._http.daemon_threads = True
        self._http.hub = self  # type: ignore[attr-defined]
        self.writes = Writes(self.repos, self.accounts, self.endpoint, self.storage)
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
        self._cuts.clear()
        self._delays.clear()
        self.accounts.clear()
        self.writes.arrived.clear()
        self.writes.part_size = None

    def publish(self, repo: str, folder: Path, revision: str = "main", **who: bool) -> Repo:
        """Serve a folder as a revision of a repository; `gated` and `private` are true or false."""
        entry = self.repos.setdefault(repo, Repo(repo, **who))
        entry.revisions[revision] = folder
        return entry

    def fail(self, pattern: str, status: int, times: int = 10**9, **headers: str) -> None:
        """Answer `status` to requests whose `METHOD /path` `pattern` is found in; 0 drops the connection."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._faults.append(_Fault(re.compile(pattern), status, times, named))

    def cut(self, pattern: str, after: int, times: int = 1) -> None:
        """Drop the connection when `after` bytes of a request's body have come."""
        self._cuts.append((re.compile(pattern), after, times))

    def delay(self, pattern: str, seconds: float) -> None:
        """Wait before answering."""
        self._delays.append((re.compile(pattern), seconds))

    def login(self, token: str, name: str, role: str = "write") -> None:
        """Know a token, as that of an account."""
        self.tokens.add(token)
        self.accounts[token] = Account(name, role)

    def cut_after(self, asked: str) -> int | None:
        """Bytes of a body to read before the connection drops, or None."""
        for i, (pattern, after, times) in enumerate(self._cuts):
            if times and pattern.search(asked):
                self._cuts[i] = (pattern, after, times - 1)
                return after
        return None

    def written(self) -> list[str]:
        """METHOD and path of everything asked that could change something."""
        reads = ("/api/validate-yaml", "/paths-info/")
        return [
            f"{r.method} {r.path}"
            for r in self.requests
            if r.method not in ("GET", "HEAD") and not any(p in r.path for p in reads)
        ]

    def bytes_sent(self, pattern: str) -> int:
        """Bytes of bodies sent for paths that `pattern` is found in."""
        return sum(r.sent for r in self.requests if re.search(pattern, r.path))

    def reply(self, target: str, headers: Any, method: str = "GET", body: bytes = b"") -> Reply | None:
        """The reply to a request; None drops the connection."""
        asked = Asked.parse(target, headers if self.ranges else {**headers, "Range": ""})
        line = f"{method} {asked.path}"
        time.sleep(sum(seconds for pattern, seconds in self._delays if pattern.search(line)))
        for fault in self._faults:
            if fault.times and fault.pattern.search(line):
                fault.times -= 1
                failed = error(fault.status, "", "Internal Error")
                return Reply(failed.status, failed.body, failed.headers | fault.headers) if fault.status else None
        if method == "POST":
            return self.writes.answer(target, asked.token, body)
        if method == "PUT":
            return self.writes.take(target, asked.token, body)
        if asked.path == "/api/whoami-v2":
            return self.writes.who(asked.token)
        return answer(self.repos, self.tokens, self.storage, asked)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits 40 ms for its headers to be acknowledged

    def do_GET(self) -> None:
        self._serve(with_body=True)

    def do_HEAD(self) -> None:
        self._serve(with_body=False)

    def do_POST(self) -> None:
        self._serve(with_body=True)

    def do_PUT(self) -> None:
        self._serve(with_body=True)

    def _serve(self, with_body: bool) -> None:
        hub: HubServer = self.server.hub  # type: ignore[attr-defined]
        length = int(self.headers.get("Content-Length", 0))
        after = hub.cut_after(f"{self.command} {self.path}") if length else None
        body = self.rfile.read(length if after is None else min(after, length))
        reply = hub.reply(self.path, self.headers, self.command, body) if after is None else None
        asked = Asked.parse(self.path, self.headers)
        sent = len(reply.body) if reply is not None and with_body else 0
        status = reply.status if reply is not None else 0
        hub.requests.append(Request(self.command, asked.path, asked.range, asked.token, status, sent, len(body)))
        if reply is None:
            self.close_connection = True
            return
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(reply.body)

    def handle_one_request(self) -> None:
        """A client that was killed is no error of the server."""
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: `requests` has it."""
