"""The child of `TemplateProcess`: writes conversations with chat templates, one JSON line for each that it reads.

A chat template is a program that a stranger wrote. Here it can take neither more time nor more memory than allowed, nor
keep the interpreter lock of the process that holds the model. Run by path, without hlwq and torch:

    python render_process.py SECONDS MEMORY_BYTES MAX_CHARACTERS
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Iterator
from typing import Any


def main(seconds: float, memory_bytes: int, max_characters: int) -> None:
    """Answer requests until stdin ends. SIGALRM ends the process when a template takes longer than `seconds`."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever prints must not get between the answers
    from transformers.utils.chat_template_utils import render_jinja_template

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is meant for the parent, which closes stdin
    _limit_memory(memory_bytes)
    _write(answers, {})
    for request in _requests():
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            rendered: Any = render_jinja_template(
                conversations=[request["messages"]],
                chat_template=request["template"],
                add_generation_prompt=True,
                **request["variables"],
            )
            text = rendered[0][0]  # of the first conversation; transformers returns texts and positions
            if len(text) > max_characters:
                raise ValueError(f"it writes more than {max_characters:,} characters")
            answer = {"text": text}
        except Exception as error:
            answer = {"kind": type(error).__name__, "said": str(error)[:1000]}
        _write(answers, answer)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _requests() -> Iterator[dict[str, Any]]:
    for line in sys.stdin:
        yield json.loads(line)


def _write(stream: Any, answer: dict[str, str]) -> None:
    stream.write(json.dumps(answer) + "\n")
    stream.flush()


def _limit_memory(memory_bytes: int) -> None:
    """Let the process take `memory_bytes` more than it has; where /proc does not say what it has, there is no limit."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (now + memory_bytes, now + memory_bytes))


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
