"""The house: imports go one way, and the command answers without torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
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
    "hub_dataset": {"errors"},
    "printable": set(),
    "samples": {"errors"},
    "startup": set(),
    "host_memory": set(),
    "devices": {"errors"},
    "codec": {"hlwq_kernels", "errors"},
    "checkpoint": {"codec", "hlwq_kernels", "errors", "progress", "sizes", "samples", "host_memory"}
    | {"devices", "_version", "printable"},
    "runtime": {"checkpoint", "codec", "hlwq_kernels", "errors", "samples", "sizes", "host_memory", "devices"}
    | {"progress", "hub_dataset", "hub"},
    "measure": {"runtime", "checkpoint", "codec", "hlwq_kernels", "errors", "progress", "samples", "_version"}
    | {"hub_dataset"},
    "hub": {"checkpoint", "errors", "progress", "sizes"},
    "vllm": {"checkpoint", "hlwq_kernels", "errors", "host_memory"},
    "ui": {"measure", "runtime", "hub", "checkpoint", "errors", "progress", "sizes", "printable"},
    "commands": {"ui", "measure", "runtime", "hub", "checkpoint", "codec", "errors", "progress", "sizes", "startup"}
    | {"api", "devices", "vllm"},
    "main": {"commands", "_version", "startup"},
    "api": {"runtime", "checkpoint", "errors", "progress"},
    "hlwq_cli": {"_version", "api", "checkpoint", "runtime"},
}
# The same for the folders of hlwq_kernels.
KERNELS_MAY_IMPORT = {
    "common": set(),
    "codes": {"common"},
    "encode": {"codes", "common"},
    "decode": {"codes", "common"},
    "decode_step": {"codes", "common"},
    "linear": {"encode", "decode", "decode_step", "codes", "common"},
    "moe": {"linear", "encode", "decode", "decode_step", "codes", "common"},
    "offload": {"moe", "linear", "encode", "decode", "decode_step", "codes", "common"},
    "attention": {"linear", "codes", "common"},
}
# Files that other folders may import although they are no face: the first imports numba, so the face cannot; the
# second is imported by `import hlwq_cli`, which must not import its room.
INNER_FACES = {"hlwq_kernels.codes.blocks_numba", "hlwq_cli.runtime.loading.import_hook"}
# A test of a script that lists every kernel of a decode step.
MAY_REACH_INSIDE = {"tests.scripts.test_time_by_cause"}
MAX_FILES = 15
ONLY_IN = {"gradio": "ui", "vllm": "vllm"}
MAY_USE = {
    "hlwq_kernels": {"torch", "numpy", "numba", "triton", "cuda"},
    "codec": {"torch"},
    "runtime": {"torch", "transformers", "PIL", "safetensors", "numpy", "gguf", "uvicorn"},
    "vllm": {"torch", "transformers", "vllm"},
    "hub": {"huggingface_hub"},
    "checkpoint": {"torch", "numpy", "blake3", "filelock", "safetensors", "huggingface_hub", "yaml", "transformers"},
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


def without_type_checking(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a file that run, in functions, too: all but the bodies of `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield other
                yield from without_type_checking(other)
        else:
            yield node
            yield from without_type_checking(node)


def modules_of(package: str) -> dict[str, Path]:
    """The files of a package, by the names that they are imported by."""
    found = {}
    for path in sorted(PACKAGES[package].rglob("*.py")):
        parts = path.relative_to(PACKAGES[package]).with_suffix("").parts
        found[".".join([package, *(parts[:-1] if parts[-1] == "__init__" else parts)])] = path
    return found


def listed(face: Path) -> set[str]:
    """The names in a face's `__all__`."""
    for node in ast.parse(face.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def imported_modules(name: str, path: Path, known: Mapping[str, Path]) -> set[str]:
    """The modules among `known` that the file `path` of the name `name` imports."""
    folder = name if path.stem == "__init__" else name.rpartition(".")[0]
    found = set()
    for node in without_type_checking(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = folder.split(".")
            prefix = parts[: len(parts) - node.level + 1] if node.level else []
            module = ".".join([*prefix, *([node.module] if node.module else [])])
            # `from package import name` reads the module `package.name` if there is one, and no function of that name
            functions = listed(known[module]) if module in known else set()
            inner = {f"{module}.{a.name}" for a in node.names if a.name not in functions}.intersection(known)
            found |= inner if len(inner) == len(node.names) else {module, *inner}
    return found.intersection(known)


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """Modules each of which imports the next, and the last the first; none where there is no circle."""
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        for other in sorted(graph[module]):
            if circle := walk(other, [*path, module]):
                return circle
        done.add(module)
        return []

    return next((circle for module in sorted(graph) if (circle := walk(module, []))), [])


@pytest.mark.parametrize("package", PACKAGES)
def test_no_files_import_each_other_in_a_circle(package: str) -> None:
    modules = modules_of(package)
    graph = {name: imported_modules(name, path, modules) - {name} for name, path in modules.items()}
    assert circle_in(graph) == []


def test_a_circle_would_be_seen() -> None:
    assert circle_in({"a": {"b", "c"}, "b": set(), "c": {"d"}, "d": {"c"}}) == ["c", "d"]
    assert circle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def kernel_folder(module: str) -> str:
    """The folder of a file of hlwq_kernels, by its module's name; "" for the package itself."""
    return [*module.split("."), ""][1]


def test_folders_of_kernels_import_one_way() -> None:
    modules = modules_of("hlwq_kernels")
    for name, path in modules.items():
        folder = kernel_folder(name)
        for other in {kernel_folder(m) for m in imported_modules(name, path, modules)} if folder else ():
            assert other == folder or other in KERNELS_MAY_IMPORT[folder], f"{name} imports from {other}"


def reached_into(module: str) -> bool:
    """Whether importing a module goes past the face of a folder of hlwq_kernels."""
    return module.startswith("hlwq_kernels.") and module.count(".") > 1 and module not in INNER_FACES


def test_folders_of_kernels_are_imported_by_their_faces() -> None:
    kernels = modules_of("hlwq_kernels")
    others = [path for package in ("hlwq_cli", "scripts", "tests") for path in sorted((ROOT / package).rglob("*.py"))]
    named = [(kernel_folder(name), name, path) for name, path in kernels.items()]
    for path in others:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[:2] == ("tests", "gpu") or ".".join(parts) in MAY_REACH_INSIDE:
            continue
        named.append((parts[2] if parts[:2] == ("tests", "kernels") else "", ".".join(parts), path))
    for own, name, path in named:
        for module in imported_modules(name, path, kernels):
            assert kernel_folder(module) == own or not reached_into(module), f"{name} imports {module}"


def test_rooms_import_each_other_by_their_faces() -> None:
    rooms = modules_of("hlwq_cli")
    for name, path in rooms.items():
        for module in imported_modules(name, path, rooms):
            same_room = module.split(".")[:2] == name.split(".")[:2]
            is_face = rooms[module].name == "__init__.py" or module.count(".") == 1 or module in INNER_FACES
            assert same_room or is_face, f"{name} imports {module}"


@pytest.mark.parametrize("top", ["hlwq_cli", "kernels", "scripts", "tests"])
def test_no_folder_holds_too_many_files_of_code(top: str) -> None:
    """Beside its face."""
    for folder in [ROOT / top, *(ROOT / top).rglob("*/")]:
        code = [p for p in folder.glob("*") if p.suffix in (".py", ".cu", ".cuh") and p.name != "__init__.py"]
        assert len(code) <= MAX_FILES, f"{folder.relative_to(ROOT)} holds {len(code)} files"


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


CHECKPOINT_ROOMS = ("io", "plan", "format", "run")


@pytest.mark.parametrize("room", CHECKPOINT_ROOMS)
def test_rooms_of_checkpoint_import_only_the_rooms_below_them(room: str) -> None:
    allowed = CHECKPOINT_ROOMS[: CHECKPOINT_ROOMS.index(room) + 1]
    for path in sorted((PACKAGES["hlwq_cli"] / "checkpoint" / room).glob("*.py")):
        for module in imported("hlwq_cli", path):
            _, inside, rest = module.partition("hlwq_cli.checkpoint.")
            assert not inside or rest.split(".")[0] in allowed, f"{path.name} of {room} imports {module}"
            assert not module.startswith("hlwq_kernels"), f"{path.name} imports {module}, not the codec"


def test_rooms_of_checkpoint_import_each_other_by_their_faces() -> None:
    modules = modules_of("hlwq_cli")
    for name, path in modules.items():
        for module in imported_modules(name, path, modules):
            within = name.startswith("hlwq_cli.checkpoint.") and module.startswith("hlwq_cli.checkpoint.")
            same_room = module.split(".")[:3] == name.split(".")[:3]
            assert not within or same_room or modules[module].name == "__init__.py", f"{name} imports {module}"
