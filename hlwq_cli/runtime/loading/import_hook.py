"""Registers the plugin when transformers' quantizers are imported, before or after hlwq_cli, and not a moment sooner.

transformers finds no plugins by itself. Importing it takes seconds, which `hlwq --help` must not pay.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_TARGET = "transformers.quantizers"


def install() -> None:
    """Register now if the quantizers are imported already, else when they are."""
    if _TARGET in sys.modules:
        _register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _register() -> None:
    importlib.import_module("hlwq_cli.runtime.loading.quantizer")  # registers on import


class _Finder(importlib.abc.MetaPathFinder):
    """Steps aside on every module but one, and there lets the usual loader work before it registers."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The usual spec of the quantizers' package, with a loader that registers afterwards."""
        if fullname != _TARGET:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, usual: importlib.abc.Loader) -> None:
        self.usual = usual

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.usual.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.usual.exec_module(module)
        _register()
