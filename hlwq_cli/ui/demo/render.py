"""HTML and chat messages for a session and a checkpoint's summary."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from ...sizes import format_size
from .exchange import Exchange, Reply
from .session import Session
from .summary import CheckpointSummary

_ENDS = {"stopped": "stopped", "full": "reached the maximum length"}


def messages(session: Session | None, model: int) -> list[dict[str, Any]]:
    """Return the conversation with one model, as messages of Gradio's Chatbot."""
    found: list[dict[str, Any]] = []
    for exchange in session.exchanges if session else ():
        found.append({"role": "user", "content": _asked(exchange)})
        found.append({"role": "assistant", "content": _answered(exchange.replies[model])})
    return found


def figures(reply: Reply) -> str:
    """Return the line below an answer: tokens, speed, memory, and why it ended if it did not end by itself."""
    parts = [f"{reply.tokens} token{'' if reply.tokens == 1 else 's'}"]
    if reply.tokens_per_second is not None:
        parts.append(f"{reply.tokens_per_second:.1f} tok/s")
    parts.append(f"{format_size(reply.memory)} memory")
    if reply.end in _ENDS:
        parts.append(_ENDS[reply.end])
    return " · ".join(parts)


def headline(summaries: Sequence[CheckpointSummary]) -> str:
    """Return the HTML of the page's title."""
    names = " and ".join(html.escape(f.name) for f in summaries)
    sizes = " against ".join(html.escape(f.headline) for f in summaries)
    return f"<h1>{names}</h1><p>{sizes}</p>"


def summary_table(summary: CheckpointSummary) -> str:
    """Return the HTML of a checkpoint's summary."""
    rows = "".join(f"<dt>{html.escape(a)}</dt><dd>{html.escape(b)}</dd>" for a, b in summary.lines)
    return f'<section class="facts"><h2>{html.escape(summary.name)}</h2><dl>{rows}</dl></section>'


def _asked(exchange: Exchange) -> list[Any]:
    images: list[Any] = [{"path": str(p), "alt_text": p.name} for p in exchange.images]
    return [*images, *([exchange.text] if exchange.text else [])]


def _answered(reply: Reply) -> list[str]:
    """Return the answer and the line below it, as two parts, so that the model's Markdown cannot affect the line."""
    if not reply.end and not reply.text:
        return [_waiting(reply)]
    if reply.problem:
        about = f"⚠ {html.escape(reply.problem)}"
    else:
        about = figures(reply) if reply.tokens else _ENDS.get(reply.end, "empty answer")
    return [*([reply.text] if reply.text else []), about]


def _waiting(reply: Reply) -> str:
    if reply.ahead:
        return f"{reply.ahead} {'person' if reply.ahead == 1 else 'people'} before you …"
    return "…"
