"""Asking the Hub again where it is busy: huggingface_hub does so only for uploads of files, not before and after."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_BUSY = (429, 502, 503, 504)
_TRIES = 4
_LONGEST_WAIT = 60.0


def with_retries(action: Callable[[], T]) -> T:
    """What `action` gives; asked up to _TRIES times, as late as the answer wishes, while the Hub says that it is busy.

    An answer of 429 or 503 says that nothing was done. One of 502 or 504 may hide that something was: a repository is
    then there already, which making it again allows; a commit then has another parent, which is a conflict.
    """
    from huggingface_hub.errors import HfHubHTTPError

    for tries in range(1, _TRIES + 1):
        try:
            return action()
        except HfHubHTTPError as error:
            if error.response is None or error.response.status_code not in _BUSY or tries == _TRIES:
                raise
            wished = error.response.headers.get("Retry-After", "")
            wait = float(wished) if wished.isdecimal() else 2.0 ** (tries - 1)
            if wait > _LONGEST_WAIT:
                raise
        time.sleep(wait)
    raise AssertionError
