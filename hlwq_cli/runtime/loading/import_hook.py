"""Registers the plugin when transformers' quantizers are imported, before or after hlwq_cli, and not earlier."""

from __future__ import annotations

import importlib

from ..transformers_private import QUANTIZERS, after_import


def install() -> None:
    """Register now if the quantizers are imported already, else when they are."""
    after_import(QUANTIZERS, _register)


def _register() -> None:
    importlib.import_module("hlwq_cli.runtime.loading.quantizer")  # registers on import
