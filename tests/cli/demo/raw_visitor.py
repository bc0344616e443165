"""A visitor of the page of `hlwq demo` without a browser: plain requests, which may be hostile."""

from __future__ import annotations

import http.client
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    """What a server answered."""

    status: int
    headers: dict[str, str]
    body: bytes


class RawVisitor:
    """Sends requests to a demo, and fires the events of its page."""

    def __init__(self, url: str) -> None:
        self.host = urlsplit(url).netloc
        self.session = secrets.token_hex(6)
        self._events: list[dict[str, Any]] = []

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """Send a request; names of headers are given with underscores."""
        connection = http.client.HTTPConnection(self.host, timeout=60)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): v for name, v in headers.items()})
            reply = connection.getresponse()
            return Answer(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read())
        finally:
            connection.close()

    def post(self, path: str, document: Mapping[str, Any]) -> Answer:
        """Send a JSON document."""
        return self.send("POST", path, json.dumps(document).encode(), Content_Type="application/json")

    def upload(self, name: str, data: bytes) -> str:
        """Upload a file; return its path on the server."""
        head = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        body = head.encode() + data + b"\r\n--b--\r\n"
        answer = self.send("POST", "/gradio_api/upload", body, Content_Type="multipart/form-data; boundary=b")
        assert answer.status == 200, answer
        return str(json.loads(answer.body)[0])

    def event(self, position: int, *data: Any) -> tuple[bool, Any]:
        """Fire the event at a position among those of the page; return whether it succeeded, and its output."""
        if not self._events:
            self._events = json.loads(self.send("GET", "/config").body)["dependencies"]
        request = {"data": [None, *data], "fn_index": self._events[position]["id"], "session_hash": self.session}
        joined = self.post("/gradio_api/queue/join", request)
        assert joined.status == 200, joined
        stream = self.send("GET", f"/gradio_api/queue/data?session_hash={self.session}")
        for line in stream.body.decode().splitlines():
            if line.startswith("data:"):
                message = json.loads(line[5:])
                if message["msg"] == "process_completed":
                    return message["success"], message["output"]
        raise AssertionError(stream.body)
