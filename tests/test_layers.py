"""The house: imports go one way, and the command answers without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"hlwq_cli": ROOT / "hlwq_cli", "hlwq_kernels": ROOT / "kernels" / "hlwq_kernels"}

# A room may import the rooms named here and itself.
MAY_IMPORT = {
    "hlwq_kernels": set(),
    "_version": set(),
    "errors": set(),
    "sizes": {"errors"},
    "progress": set(),
    "samples": {"errors"},
    "startup": set(),
    "host_memory": set(),
    "codec": {"hlwq_kernels", "errors"},
    "checkpoint": {"codec", "hlwq_kernels", "errors", "progress", "sizes", "samples", "host_memory", "_version"},
    "runtime": {"checkpoint", "codec", "hlwq_kernels", "errors", "samples", "sizes", "host_memory"},
    "measure": {"runtime", "checkpoint", "codec", "hlwq_kernels", "errors", "progress", "samples", "_version"},
    "hub": {"checkpoint", "errors", "progress", "sizes"},
    "ui": {"measure", "runtime", "hub", "checkpoint", "errors", "progress", "sizes"},
    "commands": {"ui", "measure", "runtime", "hub", "checkpoint", "codec", "errors", "progress", "sizes", "startup"},
    "main": {"commands", "_version", "startup"},
    "hlwq_cli": {"_version", "checkpoint", "runtime"},
}
ONLY_IN = {"gradio": "ui"}
MAY_USE = {
    "hlwq_kernels": {"torch", "numpy", "numba", "triton", "cuda"},
    "codec": {"torch"},
    "runtime": {"torch", "transformers", "PIL"},
    "hub": {"huggingface_hub"},
    "checkpoint": {"torch", "numpy", "blake3", "safetensors", "huggingface_hub", "yaml", "transformers"},
}


def room_of(package: str, path: Path) -> str:
    parts = path.relative_to(PACKAGES[package]).with_suffix("").parts
    if package == "hlwq_kernels":
        return package
    return "hlwq_cli" if parts == ("__init__",) else parts[0]


def imported(package: str, path: Path) -> set[str]:
    """Absolute names of the modules that a file imports, wherever in it."""
    base = [package, *path.relative_to(PACKAGES[package]).with_suffix("").parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            prefix = base[: len(base) - node.level] if node.level else []
            module = ".".join([*prefix, *([node.module] if node.module else [])])
            found |= {module} if node.module else {f"{module}.{a.name}" for a in node.names}
    return found


FILES = [(package, path) for package, root in PACKAGES.items() for path in sorted(root.rglob("*.py"))]


@pytest.mark.parametrize(("package", "path"), FILES, ids=lambda x: x.name if isinstance(x, Path) else x)
def test_imports_go_one_way(package: str, path: Path) -> None:
    room = room_of(package, path)
    for module in imported(package, path):
        top, _, rest = module.partition(".")
        if top == "hlwq_cli":
            other = rest.split(".")[0] if rest else "hlwq_cli"
            other = other if other in MAY_IMPORT else "hlwq_cli"
        elif top == "hlwq_kernels":
            other = top
        else:
            assert ONLY_IN.get(top, room) == room, f"{path.name} imports {module}"
            assert top in sys.stdlib_module_names or top in MAY_USE.get(room, {top}), f"{path.name} imports {module}"
            continue
        assert other == room or other in MAY_IMPORT[room], f"{path.name} of {room} imports {module}"


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys\nfrom hlwq_cli.main import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'numba', 'huggingface_hub', 'gradio'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_no_folder_of_kernels_shadows_the_package_of_that_name() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()
