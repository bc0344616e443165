"""Plot what each thread of a run did when.

HLWQ_TRACE=trace.json hlwq quantize MODEL OUT
python scripts/studies/plot_trace.py trace.json timeline.png
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {
    "read": "#4477aa", "code": "#ee6677", "write": "#228833", "hash tensor": "#ccbb44",
    "sync": "#aa3377", "allocate": "#bbbbbb", "start Python": "#dddddd", "plan": "#66ccee", "start GPU": "#999999",
    "start kernels": "#777777", "fetch": "#000000", "complete": "#555555",
}  # fmt: skip
LABELS = {"code": "copy to device, encode, copy back"}


def draw(events: list[dict[str, Any]], title: str, out: Path) -> None:
    names = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    spans = [e for e in events if e["ph"] == "X"]
    start = min(e["ts"] for e in spans)
    order = sorted(names, key=lambda t: (rank(names[t]), number(names[t])))
    figure, axes = plt.subplots(figsize=(11, 1.5 + 0.11 * len(order)), layout="constrained")
    for row, thread in enumerate(order):
        for what, colour in COLOURS.items():
            mine = [e for e in spans if e["tid"] == thread and e["name"] == what]
            bars = [((e["ts"] - start) / 1e6, e["dur"] / 1e6) for e in mine]
            axes.broken_barh(bars, (row - 0.4, 0.8), facecolors=colour, linewidth=0)
    axes.set_yticks(range(len(order)), [names[t].replace("_", " ") for t in order], fontsize=5)
    axes.set_xlim(left=0)
    axes.set_ylim(len(order), -1)
    axes.set_xlabel("seconds since the command started")
    axes.set_title(title, fontsize=10)
    seen = [w for w in COLOURS if any(e["name"] == w for e in spans)]
    figure.legend(
        [plt.Rectangle((0, 0), 1, 1, color=COLOURS[w]) for w in seen],
        [LABELS.get(w, w) for w in seen],
        loc="outside lower center",
        ncols=6,
        fontsize=8,
        frameon=False,
    )
    figure.savefig(out, dpi=110)


def rank(name: str) -> int:
    """Return the position of a thread: main, GPU start, workers, hashes, others."""
    kinds = ("Main", "start", "worker", "hash")
    return next((n for n, kind in enumerate(kinds) if name.startswith(kind)), len(kinds))


def number(name: str) -> int:
    digits = name.rpartition("_")[2]
    return int(digits) if digits.isdecimal() else -1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--title", default="hlwq quantize, by thread")
    args = parser.parse_args()
    draw(json.loads(args.trace.read_text())["traceEvents"], args.title, args.picture)


if __name__ == "__main__":
    main()
