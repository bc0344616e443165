"""Retry requests that the Hub is too busy to answer; huggingface_hub retries only uploads of files."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_BUSY = (429, 502, 503, 504)
_MAX_TRIES = 4
_MAX_WAIT_SECONDS = 60.0


def with_retries(action: Callable[[], T]) -> T:
    """Return the result of `action`, tried up to _MAX_TRIES times while the Hub answers that it is busy.

    The wait between tries is that of the Retry-After header, or else it doubles from one second.
    With 429 or 503 the Hub did nothing. With 502 or 504 it may have acted all the same. Then a repository exists
    already, which `create_repo` allows, or a commit has another parent, which is a conflict.

    Raises:
        HfHubHTTPError: the last answer, or one that asks for a wait of more than _MAX_WAIT_SECONDS.
    """
    from huggingface_hub.errors import HfHubHTTPError

    for tries in range(1, _MAX_TRIES + 1):
        try:
            return action()
        except HfHubHTTPError as error:
            if error.response is None or error.response.status_code not in _BUSY or tries == _MAX_TRIES:
                raise
            retry_after = error.response.headers.get("Retry-After", "")
            wait = float(retry_after) if retry_after.isdecimal() else 2.0 ** (tries - 1)
            if wait > _MAX_WAIT_SECONDS:
                raise
        time.sleep(wait)
    raise AssertionError
