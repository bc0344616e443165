"""The address of the page of `hlwq demo`, and its login."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console

from .sink import Sink

if TYPE_CHECKING:
    from .demo import Access, Address


def show_demo(sink: Sink, address: Address) -> None:
    """Show the address; flush it, so that it appears at once even if stdout is a pipe."""
    urls = [u for u in (address.share_url, address.url) if u]

    def human(console: Console) -> None:
        for url in urls:
            console.print(url)

    sink.result("demo", address, human, urls[0])
    sys.stdout.flush()
    sink.note("Press Ctrl-C to stop.")


def show_login(sink: Sink, access: Access) -> None:
    """Show a generated login once, with --quiet too, as nobody can log in without it."""
    if access.generated and access.login:
        user, password = access.login
        sink.err.print(f"Login: {user}, password {password} (not shown again)")
    elif access.share and access.login is None:
        sink.note("Anybody who has the address can use this page.")
