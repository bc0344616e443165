"""The stages of a model: layers and other parts whose weights are in memory only while they run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Stage:
    """A part of a model.

    Attributes:
        number: its place in the order of modules; 0 is what every part may use.
        path: of its module; "" for stage 0.
        tensors: names of its parameters and persistent buffers.
    """

    number: int
    path: str
    tensors: tuple[str, ...]


def stages_of(model: nn.Module) -> list[Stage]:
    """Divide a model into stages.

    Each item of a list of layers is a stage, and each module that stands beside such a list. Stage 0 holds what modules
    around a list have themselves. Every parameter and persistent buffer is in one stage.
    """
    names = list(model.state_dict(keep_vars=True))
    paths = [path for path in _paths(model, "") if any(n.startswith(f"{path}.") for n in names)]
    found = {path: tuple(n for n in names if n.startswith(f"{path}.")) for path in paths}
    inside = {name for tensors in found.values() for name in tensors}
    around = Stage(0, "", tuple(name for name in names if name not in inside))
    return [around, *(Stage(i, path, found[path]) for i, path in enumerate(paths, 1))]


def _paths(module: nn.Module, path: str) -> Iterator[str]:
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        if isinstance(child, nn.ModuleList):
            yield from (f"{inner}.{i}" for i in range(len(child)))
        elif any(isinstance(m, nn.ModuleList) for m in child.modules()):
            yield from _paths(child, inner)
        else:
            yield inner
