"""Lets transformers load coded checkpoints in a Python that never imports hlwq_cli; `hlwq.pth` imports this at start.

Every start of Python in an environment with hlwq runs this file, so it imports nothing that the interpreter has not
imported already, and a fault here must not stop a program. HLWQ_AUTOLOAD=0 turns it off.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_QUANTIZERS = "transformers.quantizers"  # hlwq_cli.runtime.transformers_private.QUANTIZERS, which is too slow to import


class _BeforeQuantizers:
    """Ignores every module but transformers.quantizers, whose import it follows by that of hlwq_cli."""

    def find_spec(
        self, fullname: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """Return the usual spec of the module, whose loader also imports hlwq_cli."""
        if fullname != _QUANTIZERS:
            return None
        import importlib.util

        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            _import_after(spec)
        return spec


def _import_after(spec: "ModuleSpec") -> None:
    """Let the loader of this one module import hlwq_cli after it; it keeps its class and its other methods."""
    loader = spec.loader
    usual = loader.exec_module  # type: ignore[union-attr]

    def exec_module(module: "ModuleType") -> None:
        vars(loader).pop("exec_module", None)
        usual(module)
        _import_hlwq()

    try:
        loader.exec_module = exec_module  # type: ignore[method-assign, union-attr]
    except (AttributeError, TypeError):  # a loader without attributes of its own: load as if hlwq were absent
        return


def _import_hlwq() -> None:
    """Import hlwq_cli, which registers with the quantizers at once; if it fails, say so and go on."""
    try:
        import hlwq_cli  # noqa: F401
    except Exception as error:
        import warnings

        warnings.warn(
            f"hlwq cannot register with transformers, so coded checkpoints do not load here: {error}. "
            "Install the versions that hlwq needs, or set HLWQ_AUTOLOAD=0.",
            RuntimeWarning,
            stacklevel=2,
        )


if os.environ.get("HLWQ_AUTOLOAD") != "0" and _QUANTIZERS not in sys.modules:
    sys.meta_path.insert(0, _BeforeQuantizers())
