"""Sums of x x' over the inputs x of watched weights, while the products with them run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from ...codec import Moments, Prior


@dataclass(frozen=True)
class Watched:
    """A weight whose inputs are summed.

    Attributes:
        name: of the parameter.
        module: path of the module that holds it.
        shape: (out, in), or (experts, out, in); in memory the inputs of a row follow one another.
    """

    name: str
    module: str
    shape: tuple[int, ...]

    @property
    def inputs(self) -> int:
        """Number of inputs of a row."""
        return self.shape[-1]

    @property
    def is_stack(self) -> bool:
        """Whether it holds experts."""
        return len(self.shape) == 3

    @property
    def experts(self) -> int:
        """Number of matrices."""
        return self.shape[0] if self.is_stack else 1


class InputSum:
    """The sum of one input, which several weights may share.

    Attributes:
        h: float32 (matrices, inputs, inputs).
        count: float64 (matrices,), tokens summed, on the CPU.
    """

    def __init__(self, matrices: int, inputs: int, device: torch.device) -> None:
        self.h = torch.zeros(matrices, inputs, inputs, dtype=torch.float32, device=device)
        self.count = torch.zeros(matrices, dtype=torch.float64)

    def add(self, rows: torch.Tensor, matrix: int) -> None:
        """Add inputs (tokens, inputs) to the sum of one matrix."""
        total = self.h[matrix]
        if rows.dtype == torch.float32 or not rows.is_cuda:
            rows = rows.float()
            total.addmm_(rows.T, rows)
        else:
            total += torch.mm(rows.T, rows, out_dtype=torch.float32)
        self.count[matrix] += len(rows)


@dataclass
class _Seen:
    """An input that has been added in this turn. The tensor is kept, so that its memory is not used for another."""

    rows: torch.Tensor
    version: int
    sum: InputSum

    def is_same(self, rows: torch.Tensor) -> bool:
        """Whether it is this very input: the same memory, unchanged."""
        ours = self.rows
        same = ours.shape == rows.shape and ours.stride() == rows.stride() and ours.dtype == rows.dtype
        return same and self.version == rows._version


@dataclass
class InputSums:
    """The sums of all watched weights.

    Weights that had the same input when they were first seen share a sum, such as the projections to queries, keys and
    values.

    Attributes:
        of: sum by name of the parameter.
        priors: by name of a stack of experts: `shared` for those that the inputs of their module reach first,
            `isotropic` for those that take what the first ones give.
    """

    of: dict[str, InputSum] = field(default_factory=dict)
    priors: dict[str, Prior] = field(default_factory=dict)
    _turn: dict[tuple[int, int, str], list[_Seen]] = field(default_factory=dict)
    _first: dict[str, str] = field(default_factory=dict)

    def add(self, watched: Watched, rows: torch.Tensor, matrix: int = 0) -> None:
        """Add the inputs (tokens, inputs) of one matrix of a watched weight, unless its sum has them already."""
        if not len(rows):
            return
        module = watched.module if watched.is_stack else ""  # experts share their inputs within their module only
        there = self._turn.setdefault((rows.data_ptr(), matrix, module), [])
        seen = next((s for s in there if s.is_same(rows)), None)
        mine = self.of.get(watched.name)
        if mine is None:
            fits = seen is not None and seen.sum.h.shape == (watched.experts, watched.inputs, watched.inputs)
            mine = seen.sum if seen and fits else InputSum(watched.experts, watched.inputs, rows.device)
            self.of[watched.name] = mine
            self._set_prior(watched, mine)
        if seen is not None and seen.sum is mine:
            return
        mine.add(rows, matrix)
        there.append(_Seen(rows, rows._version, mine))

    def end_turn(self) -> None:
        """Forget which inputs have been added; another forward pass goes on."""
        self._turn.clear()

    def take(self, names: Iterable[str]) -> dict[str, tuple[Moments, Prior]]:
        """Return the moments of parameters that were seen, and drop their sums.

        Weights that share a sum get it in memory of their own, as those who take moments change them.
        """
        found = {name: self.of.pop(name) for name in names if name in self.of}
        taken: dict[str, tuple[Moments, Prior]] = {}
        used: set[int] = set()
        for name, total in found.items():
            h = total.h.clone() if id(total) in used else total.h
            used.add(id(total))
            is_stack = name in self.priors
            moments = Moments(h, total.count) if is_stack else Moments(h[0], float(total.count[0]))
            taken[name] = moments, self.priors.pop(name, "shared")
        return taken

    def _set_prior(self, watched: Watched, total: InputSum) -> None:
        if not watched.is_stack:
            return
        first = self._first.setdefault(watched.module, watched.name)
        shares = first == watched.name or self.of.get(first) is total
        self.priors[watched.name] = "shared" if shares else "isotropic"


@dataclass
class SeenWeights(InputSums):
    """Sums nothing, and only remembers the names of the parameters that were seen."""

    names: set[str] = field(default_factory=set)

    def add(self, watched: Watched, rows: torch.Tensor, matrix: int = 0) -> None:
        """Remember a name."""
        self.names.add(watched.name)
