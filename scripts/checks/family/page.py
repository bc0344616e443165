"""The results of a sweep as JSON, and as the page docs/families.md."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

from scripts.checks.family.reasons import counted, in_words
from scripts.checks.family.steps import Row
from scripts.checks.family.tiny_models import Family

SHOWN = 120
"""How many characters of an error are shown."""


@dataclass
class Sweep:
    """The rows, and what was not tried, with the reason."""

    rows: list[Row] = field(default_factory=list)
    skipped: list[tuple[Family, str]] = field(default_factory=list)

    def put(self, family: Family, answer: Row | str) -> None:
        """Add a row, or the reason for having none, in place of an earlier one of the same class."""
        self.rows = [row for row in self.rows if row.family != family]
        self.skipped = [entry for entry in self.skipped if entry[0] != family]
        if isinstance(answer, Row):
            self.rows.append(replace(answer, measured=date.today().isoformat()))
        else:
            self.skipped.append((family, answer))

    def without_done(self, chosen: list[Family]) -> list[Family]:
        """Return the classes of a list that are still to be checked."""
        done = {row.family for row in self.rows}
        return [family for family in chosen if family not in done]


def table(rows: list[Row]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield "| model type | class | auto class | coded | largest kept in layers | difference | generates | verdict |"
    yield "|---" * 8 + "|"
    for row in sorted(rows, key=lambda r: (not r.failed, r.family.model_type, r.family.class_name)):
        share = "-" if row.coded_share is None else f"{row.coded_share:.0%}"
        kept = f"{row.kept}: {row.kept_reason}" if row.kept else "-"
        difference = "-" if row.difference is None else f"{row.difference:.1g}"
        family = row.family
        cells = (family.model_type, family.class_name, family.auto_class, share, kept, difference, row.generates)
        yield "| " + " | ".join(map(cell, [*cells, row.verdict])) + " |"


def cell(text: str) -> str:
    """Return a text that fits a cell of a Markdown table."""
    return text.replace("|", "/").replace("<", "&lt;")


def has(name: str) -> bool:
    """Return whether a package is installed; timm makes some backbones, and need not be there."""
    return next(distributions(name=name), None) is not None


def measured(rows: list[Row]) -> str:
    """Return how many rows are of which day."""
    days = sorted(Counter(row.measured for row in rows).items(), reverse=True)
    return "Rows by the day they were measured: " + ", ".join(f"{day}: {count}" for day, count in days) + "."


def not_tried(skipped: list[tuple[Family, str]]) -> Iterator[str]:
    """Yield the lines about classes that were not tried: counts of the reasons, then each class."""
    yield from ("", "## Not tried", "", f"{len(skipped)} classes were not tried.")
    yield "transformers alone does not build, save, load or run a tiny model of these here,"
    yield "or the sweep did not reach it."
    yield from ("", "| reason | classes |", "|---|---|")
    yield from (f"| {words} | {count} |" for words, count in counted(reason for _, reason in skipped))
    yield from ("", "| model type | class | reason | what was raised |", "|---" * 4 + "|")
    for family, reason in sorted(skipped, key=lambda entry: (entry[0].model_type, entry[0].class_name)):
        cells = (family.model_type, family.class_name, in_words(reason), reason[:SHOWN])
        yield "| " + " | ".join(map(cell, cells)) + " |"


def page(result: Sweep, command: str) -> str:
    """Return docs/families.md."""
    counts = Counter(row.verdict.partition(":")[0] for row in result.rows)
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
    versions = ", ".join(f"{name} {version(name)}" for name in ("transformers", "torch", "timm", "hlwq") if has(name))
    head = [
        "# Model families",
        "",
        f"Made by `{command}` on {date.today().isoformat()}.",
        f"Versions: {versions}. Machine: {platform.machine()}, CPU.",
        measured(result.rows),
        "",
        f"{len(result.rows)} classes were tried: {verdicts}.",
        f"{len(result.skipped)} were not tried: [why](#not-tried).",
        "Each is a tiny model with random weights that was quantized with 6 bits.",
        "It was verified, exported to bf16, and loaded by its class: the codes twice, the exported weights once.",
        "The models run in bf16, or in float32 where bf16 does not run, is very slow, or differs by its rounding.",
        "",
        "- `coded`: the share of the weights in matrices, embeddings and heads included. Tiny models have large",
        "  embeddings for their size: the share of a real model is larger.",
        "- `largest kept in layers`: the largest matrix that is kept and is neither embeddings nor a head.",
        "- `difference`: of the outputs from those of the exported model, over the largest output.",
        "- `generates`: the same tokens as the exported model. `-`: the original does not generate.",
        "- `verdict`: `equal`, or `refused` by `hlwq quantize` before any work, with the reason.",
        "",
    ]
    tail = not_tried(result.skipped) if result.skipped else ()
    return "\n".join([*head, *table(result.rows), *tail]) + "\n"


def load(out: Path) -> Sweep:
    """Return an earlier result without the rows that failed; nothing where there is no result."""
    path = out.with_suffix(".json")
    if not path.exists():
        return Sweep()
    document = json.loads(path.read_text())
    rows = [Row(**(entry | {"family": take_family(entry)})) for entry in document["rows"]]
    skipped = [(take_family(entry), entry["reason"]) for entry in document["skipped"]]
    return Sweep([row for row in rows if not row.failed], skipped)


def take_family(entry: dict[str, Any]) -> Family:
    """Return the class that an entry of a result names, and take its names out of the entry."""
    return Family(entry.pop("model_type"), entry.pop("class_name"), entry.pop("auto_class"))


def save(result: Sweep, out: Path, command: str) -> None:
    """Write the result as JSON and as a page."""
    document = {
        "rows": [{**asdict(row), **asdict(row.family), "family": None} for row in result.rows],
        "skipped": [{**asdict(family), "reason": reason} for family, reason in result.skipped],
    }
    out.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    out.with_suffix(".md").write_text(page(result, command))
