"""A model without weights that can run layer by layer: its class on the meta device, with real buffers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...checkpoint.io import DTYPES, Source
from ...checkpoint.plan import Plan, Resolution, build_model, parameter_kinds, resolve
from ...errors import UnsupportedError
from ..transformers_private import choose_experts, fill_buffers, float32_modules, set_device, tied_weights
from .stages import Stage, stages_of

_GROUPED_ALIGNMENT = 8
"""Grouped products need rows of a multiple of 16 bytes."""


@dataclass(frozen=True)
class Skeleton:
    """A model whose weights come and go.

    Attributes:
        model: the model; its parameters are on the meta device.
        resolution: what it makes of the source's tensors.
        stages: its parts.
        source_of: for each name of a parameter or persistent buffer, the name that stored tensors fill: its own, or
            that of the weight it is tied to.
        transposed: names of parameters that their modules hold as (..., in, out).
        device: where it runs.
        dtype: that it computes in.
    """

    model: Any
    resolution: Resolution
    stages: list[Stage]
    source_of: Mapping[str, str]
    transposed: frozenset[str]
    device: torch.device
    dtype: torch.dtype

    def dtype_of(self, name: str, stored: torch.dtype) -> torch.dtype:
        """Return a tensor's dtype in memory, as loading the whole model would choose it."""
        if not stored.is_floating_point:
            return stored
        exact = float32_modules(self.model)
        return torch.float32 if exact.intersection(name.split(".")) else self.dtype

    def on_device(self, value: torch.Tensor) -> torch.Tensor:
        """Return an input of the model on its device; pictures and sound in the dtype that it computes in."""
        return value.to(self.device, self.dtype if value.is_floating_point() else value.dtype)

    def read_names(self, stage: Stage) -> tuple[str, ...]:
        """Return the names to read for a stage, each once."""
        return tuple(dict.fromkeys(self.source_of[name] for name in stage.tensors if name in self.source_of))

    @contextmanager
    def holding(self, stage: Stage, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Give a stage its weights inside this context.

        Args:
            stage: of this model.
            tensors: by the names of `read_names`.
        """
        before = {name: self._get(name) for name in stage.tensors if name in self.source_of}
        parameters = {name: nn.Parameter(t, requires_grad=False) for name, t in tensors.items()}
        try:
            for name, old in before.items():
                source = self.source_of[name]
                self._set(name, parameters[source] if isinstance(old, nn.Parameter) else tensors[source])
            yield
        finally:
            for name, old in before.items():
                self._set(name, old)

    def _get(self, name: str) -> torch.Tensor:
        path, _, own = name.rpartition(".")
        found: torch.Tensor = getattr(self.model.get_submodule(path), own)
        return found

    def _set(self, name: str, tensor: torch.Tensor) -> None:
        path, _, own = name.rpartition(".")
        module = self.model.get_submodule(path)
        held = module._parameters if own in module._parameters else module._buffers
        held[own] = tensor


def make_skeleton(plan: Plan, device: torch.device) -> Skeleton:
    """Build the model of a plan's source.

    Raises:
        UnsupportedError: transformers has no such class, or cannot build it.
    """
    source = plan.source
    dtype = _dtype(source, device)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        built = build_model(source.config)
    finally:
        torch.set_default_dtype(before)
    if built.model is None:
        raise UnsupportedError(
            f"{source.id} cannot be calibrated, as {built.reason}.", "Leave --calibrate out, or update transformers."
        )
    model = built.model.eval()
    transposed = frozenset(name for name, kind in parameter_kinds(model).items() if kind.is_transposed)
    resolution = resolve(model, {n: t.shape for n, t in source.tensors.items()}, transposed)
    stages = stages_of(model)
    source_of = _sources(model, resolution, {t.name for t in plan.dropped})
    names = {name for stage in stages for name in stage.tensors}
    fill_buffers(model, names - set(source_of), device)
    set_device(model, device)
    _turn_off_caches(model)
    choose_experts(model, _implementation(device))
    return Skeleton(model, resolution, stages, source_of, transposed, device, dtype)


def output_head(model: Any) -> nn.Module | None:
    """Return the module that turns the last hidden states into logits of tokens, if the model has one."""
    try:
        head: nn.Module | None = model.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return head


def _dtype(source: Source, device: torch.device) -> torch.dtype:
    """Return float32 on a CPU; else the dtype that most stored bytes have."""
    if device.type == "cpu":
        return torch.float32
    nbytes: dict[torch.dtype, int] = {}
    for info in source.tensors.values():
        dtype = DTYPES.get(info.dtype)
        if dtype is not None and dtype.is_floating_point:
            nbytes[dtype] = nbytes.get(dtype, 0) + info.nbytes
    return max(nbytes, key=lambda dtype: nbytes[dtype], default=torch.float32)


def _sources(model: Any, resolution: Resolution, dropped: set[str]) -> dict[str, str]:
    """Return the name with stored tensors for each name in the model; names without any are left out."""
    origins = resolution.origins
    partners: dict[str, list[str]] = {}
    for tied, first in tied_weights(model).items():
        partners.setdefault(tied, []).append(first)
        partners.setdefault(first, []).append(tied)
    found = {}
    for name in resolution.shapes:
        usual = name in origins and not dropped.issuperset(origins[name].sources)
        source = name if usual else _first_stored(name, partners, set(origins) - {name})
        if source is not None:
            found[name] = source
        elif name in origins:
            found[name] = name
    return found


def _first_stored(name: str, partners: Mapping[str, list[str]], stored: Iterable[str]) -> str | None:
    """Return the nearest of the names that a name is tied to, directly or by others, that is stored."""
    seen, at = {name}, [name]
    while at:
        at = [other for one in at for other in partners.get(one, ()) if other not in seen]
        seen.update(at)
        for other in at:
            if other in stored:
                return other
    return None


def _turn_off_caches(model: nn.Module) -> None:
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if hasattr(config, "use_cache"):
            config.use_cache = False


def _implementation(device: torch.device) -> Callable[[nn.Module], str]:
    """Return how experts run: as grouped products on a GPU, which are few kernels that add in one order."""

    def choose(module: nn.Module) -> str:
        sizes = [size for p in module.parameters() if p.ndim == 3 for size in p.shape[1:]]
        fits = all(size % _GROUPED_ALIGNMENT == 0 for size in sizes)
        return "grouped_mm" if device.type == "cuda" and fits else "eager"

    return choose
