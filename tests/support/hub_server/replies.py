"""Replies: a status, headers and a body; errors as the Hub words them, files in the ranges that were asked."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from .store import Blob


@dataclass(frozen=True)
class Reply:
    """What goes back; for HEAD the body is announced and not sent."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def json_reply(document: Any, headers: dict[str, str] | None = None) -> Reply:
    body = json.dumps(document).encode()
    return Reply(200, body, {"Content-Type": "application/json; charset=utf-8", **(headers or {})})


def error(status: int, code: str, message: str) -> Reply:
    """An error with the headers by which huggingface_hub tells them apart."""
    headers = {"Content-Type": "application/json", "X-Error-Message": message}
    if code:
        headers["X-Error-Code"] = code
    return Reply(status, json.dumps({"error": message}).encode(), headers)


def file_reply(blob: Blob, wanted: str, headers: dict[str, str]) -> Reply:
    """A file, or the one range of it that `wanted` (a Range header, or nothing) names."""
    data = blob.path.read_bytes()
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted)
    if not match or match.groups() == ("", ""):
        return Reply(200, data, headers)
    first, last = _bounds(match[1], match[2], len(data))
    if first > last:
        return Reply(416, b"", headers | {"Content-Range": f"bytes */{len(data)}"})
    return Reply(206, data[first : last + 1], headers | {"Content-Range": f"bytes {first}-{last}/{len(data)}"})


def _bounds(first: str, last: str, size: int) -> tuple[int, int]:
    if not first:
        return max(0, size - int(last)), size - 1
    return int(first), min(int(last), size - 1) if last else size - 1
