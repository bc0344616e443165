"""What stands in front of a server: it asks for a key, and lets only the paths of the OpenAI API through."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

HEALTH = "/health"
PATHS = (HEALTH, "/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/responses")
"""The paths that are let through. Others of `transformers serve` load any model of the Hub, or drop this one."""


class Guard:
    """An ASGI application in front of another one.

    A request without the right key gets 401, one for an unknown path 404. `/health` needs no key.
    """

    def __init__(self, application: Application, key: str | None) -> None:
        self._application = application
        self._wanted = None if key is None else f"Bearer {key}".encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "lifespan":
            await self._application(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["path"] != HEALTH and not self._has_key(scope):
            await _refuse(send, 401, "The API key is missing or wrong.", "invalid_api_key")
        elif scope["path"] not in PATHS:
            await _refuse(send, 404, "There is no such path.", "not_found")
        else:
            await self._application(scope, receive, send)

    def _has_key(self, scope: Message) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return self._wanted is None or (len(given) == 1 and hmac.compare_digest(given[0], self._wanted))


async def _refuse(send: Send, status: int, message: str, code: str) -> None:
    """Send an error in the form of the OpenAI API."""
    body = json.dumps({"error": {"message": message, "type": "invalid_request_error", "code": code}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
