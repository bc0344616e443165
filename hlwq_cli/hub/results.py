"""The figures of `hlwq bench --save` in a checkpoint's folder, as a section of its card."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoint.format import CHART, RESULTS, Manifest
from ..checkpoint.io import read_text
from ..errors import CorruptError
from ..sizes import format_size


def fidelity_section(folder: Path, manifest: Manifest) -> tuple[str, str]:
    """Return the section in Markdown, empty if nothing was measured, and a remark for the user, or "".

    Raises:
        CorruptError: the file of results is not valid.
    """
    path = folder / RESULTS
    if not path.is_file():
        return "", ""
    try:
        document = json.loads(read_text(path))
        if document["checkpoint"] != manifest.digest:
            return "", f"{RESULTS} was measured on another checkpoint, so the card leaves it out."
        return _section(document, (folder / CHART).is_file()), ""
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptError(f"{path} is not valid: {error}.", "Measure again with `hlwq bench --save`.") from error


def _section(document: Mapping[str, Any], has_chart: bool) -> str:
    models = [m for m in (document["reference"], document["measured"]) if m is not None]
    parts = ["## Fidelity"]
    if document["protocol"] is not None:
        parts.append(_text(document["protocol"]["line"]) + ".")
    parts.append(_table(models))
    if has_chart:
        parts.append(f"![Fidelity against size, error of every tensor, weights over the centroids]({CHART})")
    parts += [_speed(m) for m in models if m.get("speed")] + [_tasks(m) for m in models if m.get("tasks")]
    parts.append(
        f"Measured on {_text(document['date'])} with `hlwq bench`, version {_text(document['tool']['version'])}."
    )
    return "\n\n".join(parts) + "\n"


_COLUMNS = ("model", "weights", "bits/weight", "KV bits", "PPL", "rise of ln PPL", "KL divergence", "top-1 agreement")


def _table(models: list[Mapping[str, Any]]) -> str:
    rows = [_cells(m) for m in models]
    used = [c for c in _COLUMNS if any(c in row for row in rows)]
    lines = ["| " + " | ".join(used) + " |", "|" + "---|" * len(used)]
    return "\n".join(lines + ["| " + " | ".join(row.get(c, "") for c in used) + " |" for row in rows])


def _cells(m: Mapping[str, Any]) -> dict[str, str]:
    bits = m["bits_per_weight"]
    cells = {"model": _text(m["path"]), "weights": format_size(_number(m["bytes"]))}
    if bits:
        cells["bits/weight"] = f"{_number(bits):.3f}"
    if kv := m.get("kv_cache"):
        cells["KV bits"] = _text(kv["bits"])
    if p := m.get("perplexity"):
        cells["PPL"] = f"{_number(p['value']):.4f} ± {_number(p['error']):.4f}"
    if d := m.get("delta"):
        cells["rise of ln PPL"] = f"{_number(d['log_ratio']):+.4f} ± {_number(d['error']):.4f}"
    if k := m.get("divergence"):
        cells["KL divergence"] = f"{_number(k['mean']):.5f} ± {_number(k['error']):.5f}"
        cells["top-1 agreement"] = f"{_number(k['same_top']):.4f} ± {_number(k['same_top_error']):.4f}"
    return cells


def _speed(m: Mapping[str, Any]) -> str:
    s = m["speed"]
    prefill, decode = (f"{_number(s[k]['mean']):.1f} ± {_number(s[k]['deviation']):.1f}" for k in ("prefill", "decode"))
    return f"{_text(m['path'])} on {_text(s['device'])}: prefill {prefill}, decode {decode} tokens a second."


def _tasks(m: Mapping[str, Any]) -> str:
    scores = [f"{_text(t['task'])} {_text(t['metric'])} {_number(t['value']):.4f}" for t in m["tasks"]]
    return f"{_text(m['path'])}: {', '.join(scores)}."


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:  # NaN is not
        raise ValueError(f"{value!r:.40} is not a number")
    return float(value)


def _text(value: Any) -> str:
    """Return one line of text, escaped so that it stays inside its table cell."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not a string")
    return " ".join(value.split()).replace("|", "\\|").replace("<", "&lt;")
