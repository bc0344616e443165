"""Charts for a card: fidelity against size, error by tensor, and rotated weights with their centroids."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoint import CodedCheckpoint, open_coded
from ..checkpoint.format import MANIFEST, TensorRecord, write_file
from ..codec import lloyd_max
from ..errors import NotFoundError, UsageError
from ..samples import resolve_model
from .report import BenchReport, Measured

# The palette of Okabe and Ito, which colour-blind people can distinguish.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
_THEMES = {"": ("#ffffff", "#222222", "#d9d9d9"), "-dark": ("#0d1117", "#e6edf3", "#30363d")}


def check_drawable(out: Path) -> None:
    """Check before any work that a chart can be written.

    Raises:
        UsageError: the name of `out` does not end in .png.
        NotFoundError: the folder of `out` does not exist.
    """
    if out.suffix.lower() != ".png":
        raise UsageError(f"--chart writes a PNG file, and {out} does not end in .png.", "Use for example out.png.")
    if not out.parent.is_dir():
        raise NotFoundError(f"There is no folder {out.parent} for {out.name}.", "Create it, or choose another.")


def draw(report: BenchReport, out: Path) -> tuple[Path, ...]:
    """Draw a report as PNG for light pages, and as NAME-dark.png in the same folder for dark pages.

    The panels are fidelity against size (if text was measured), the error of each coded tensor, and a histogram of
    rotated weights with the centroids. The last two show the first coded checkpoint.

    Returns:
        The paths of the light and the dark image.
    """
    import matplotlib

    matplotlib.use("Agg")
    return tuple(_draw(report, out.with_stem(out.stem + suffix), *colours) for suffix, colours in _THEMES.items())


def _draw(report: BenchReport, path: Path, background: str, ink: str, grid: str) -> Path:
    import matplotlib.pyplot as plt

    style: Any = {
        "figure.facecolor": background, "axes.facecolor": background, "savefig.facecolor": background,
        "text.color": ink, "axes.labelcolor": ink, "axes.edgecolor": grid, "xtick.color": ink, "ytick.color": ink,
        "axes.grid": True, "grid.color": grid, "grid.linewidth": 0.6, "font.size": 11,
        "axes.spines.top": False, "axes.spines.right": False,
    }  # fmt: skip
    coded = next((m for m in report.measured if _folder(m.path) is not None), None)
    panels: list[Any] = [lambda axes: _fidelity(axes, report, ink)] if report.protocol else []
    if coded is not None:
        panels += [lambda axes: _errors(axes, coded), lambda axes: _histogram(axes, coded, ink)]
    with plt.rc_context(style):
        figure, axes = plt.subplots(1, max(len(panels), 1), figsize=(4.6 * max(len(panels), 1), 4.0), squeeze=False)
        for panel, panel_axes in zip(panels, axes[0], strict=False):
            panel(panel_axes)
        figure.tight_layout()
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=150)
        plt.close(figure)
    write_file(path, image.getvalue())
    return path


def _folder(path: str) -> Path | None:
    folder = Path(resolve_model(path))
    return folder if (folder / MANIFEST).exists() else None


def _fidelity(axes: Any, report: BenchReport, ink: str) -> None:
    by_kld = any(m.divergence for m in report.measured)
    models = [*report.measured] + ([report.reference] if report.reference else [])
    unit, scale = ("GB", 1e9) if max(m.bytes for m in models) >= 1e9 else ("MB", 1e6)
    for i, m in enumerate(models):
        value, error = _value(m, by_kld)
        if value is None:
            continue
        colour = _COLOURS[i % len(_COLOURS)]
        axes.errorbar(m.bytes / scale, value, yerr=error, fmt="o", ms=8, capsize=3, color=colour, clip_on=False)
        axes.annotate(Path(m.path).name, (m.bytes / scale, value), xytext=(8, 6), textcoords="offset points", color=ink)
    axes.set_xlim(0, 1.35 * max(m.bytes for m in models) / scale)
    if by_kld:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(f"weights, {unit}")
    axes.set_ylabel("KL divergence, nats" if by_kld else "perplexity")
    axes.set_title("Fidelity against size", loc="left")
    axes.margins(y=0.25)


def _value(m: Measured, by_kld: bool) -> tuple[float | None, float]:
    if by_kld:
        return (m.divergence.mean, m.divergence.error) if m.divergence else (0.0, 0.0)
    return (m.perplexity.value, m.perplexity.error) if m.perplexity else (None, 0.0)


def _errors(axes: Any, measured: Measured) -> None:
    from matplotlib.ticker import PercentFormatter

    folder = _folder(measured.path)
    assert folder is not None
    records = open_coded(folder).manifest.coded
    roles = list(dict.fromkeys(r.role for r in records))
    for role, colour in zip(roles, _COLOURS, strict=False):
        points = [(i, r.nmse) for i, r in enumerate(records) if r.role == role and r.nmse > 0]
        axes.plot(*zip(*points, strict=True), ".", color=colour, label=role) if points else None
    axes.set_xlabel(f"coded tensor of {Path(measured.path).name}, in file order")
    axes.set_ylabel("relative squared error")
    axes.set_title("Error of every coded tensor", loc="left")
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.legend(frameon=False, fontsize=9, ncols=2)
    axes.margins(y=0.35)


def _histogram(axes: Any, measured: Measured, ink: str) -> None:
    folder = _folder(measured.path)
    assert folder is not None
    checkpoint = open_coded(folder)
    record = max(checkpoint.manifest.coded, key=lambda r: math.prod(r.shape))
    fractions = _code_fractions(checkpoint, record)
    checkpoint.close()
    c = np.array(lloyd_max(record.bits))
    edges = np.concatenate([[c[0] - 0.4], (c[1:] + c[:-1]) / 2, [c[-1] + 0.4]])
    axes.stairs(fractions / np.diff(edges), edges, fill=True, color=_COLOURS[0], label="weights, by their codes")
    x = np.linspace(-4, 4, 200)
    axes.plot(x, np.exp(-x * x / 2) / math.sqrt(2 * math.pi), color=_COLOURS[1], lw=1.5, label="normal density")
    axes.plot(c, np.zeros_like(c), "|", color=ink, ms=9, mew=1.2, label="centroids")
    axes.set_xlabel(f"rotated weight over its block's scale\n{'.'.join(record.name.split('.')[-3:])}")
    axes.set_title("Weights over the centroids", loc="left")
    axes.set_ylim(0, 0.62)
    axes.legend(frameon=False, fontsize=9)


def _code_fractions(checkpoint: CodedCheckpoint, record: TensorRecord) -> Any:
    """Return the fraction of weights at each code, float32 (2**bits,), over up to 2048 rows."""
    codes = checkpoint.read_codes(record, 0, min(2048, math.prod(record.shape[:-1])))
    counts = torch.bincount(codes.flatten().int(), minlength=2**record.bits)
    return (counts / counts.sum()).numpy()
