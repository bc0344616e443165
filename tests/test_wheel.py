"""The built wheel runs by itself: both packages, types, configs and licence are inside."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hlwq_cli.runtime import load_model
from tests.support.builders import tiny_llama

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("hlwq-*.whl"))


def test_wheel_holds_packages_types_configs_and_licence(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in ("hlwq_cli/py.typed", "hlwq_kernels/py.typed", "hlwq_cli/main.py", "hlwq_kernels/encode/encode.cu"):
        assert name in names
    assert {"hlwq.pth", "hlwq_autoload.py"} <= names
    configs = {str(p.relative_to(ROOT)) for p in (ROOT / "configs").rglob("*.yaml")}
    assert {f"hlwq_cli/{c}" for c in configs} <= names
    assert "hlwq_cli/ui/demo/page.css" in names
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert not [n for n in names if n.startswith(("tests/", "scripts/", "kernels/", "autoload/"))]


def test_installed_wheel_quantizes_with_its_own_configs(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", str(target)]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True)
    model = tiny_llama(tmp_path / "model")
    environment = {**os.environ, "PYTHONPATH": str(target)}
    code = (
        "import sys, hlwq_cli.main as m, hlwq_kernels as k\n"
        "print(m.__file__, k.__file__, file=sys.stderr, flush=True)\nm.main()"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, "quantize", str(model), "out", "--recipe", "classic", "--json"],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert all(path.startswith(str(target)) for path in run.stderr.splitlines()[0].split())
    assert json.loads(run.stdout)["coded"] > 0
    assert (tmp_path / "out" / "hlwq_manifest.json").exists()


class Environment:
    """A virtual environment without packages of its own; `run` adds those of the tests after them."""

    def __init__(self, folder: Path, *install: str) -> None:
        venv.create(folder, symlinks=True)
        self.python = folder / "bin" / "python"
        self.site = next((folder / "lib").glob("python*/site-packages"))
        self.pip("install", "--no-deps", "--no-compile", *install)
        (self.site / "zz_packages_of_the_tests.pth").write_text(sysconfig.get_path("purelib"))

    def pip(self, verb: str, *words: str) -> None:
        command = [sys.executable, "-m", "pip", "--python", str(self.python), verb, "--quiet", *words]
        subprocess.run(command, check=True, capture_output=True, env=without_paths())

    def run(self, code: str, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command: Sequence[str] = [str(self.python), *flags, "-c", code]
        return subprocess.run(
            command, capture_output=True, text=True, env={**without_paths(), **variables}, cwd=self.site.parent
        )


def without_paths() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HLWQ_AUTOLOAD")}


@pytest.fixture(scope="session")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("environment"), str(wheel))


FINDERS = "import sys; print([type(f).__name__ for f in sys.meta_path if type(f).__module__ == 'hlwq_autoload'])"
STATE = """
import os
from transformers import AutoModelForCausalLM
from safetensors.torch import save_file
model = AutoModelForCausalLM.from_pretrained(os.environ["MODEL"])
save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, os.environ["STATE"])
"""


@pytest.fixture(scope="module")
def editable(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("editable"), "-e", str(ROOT))


def test_transformers_loads_codes_without_an_import(
    editable: Environment, coded: Callable[[str], Path], tmp_path: Path
) -> None:
    """In the editable environment, as numba compiles its decoder anew in another folder."""
    run = editable.run(STATE, MODEL=str(coded("qwen3")), STATE=str(tmp_path / "state"))
    assert run.returncode == 0, run.stderr
    found, wanted = load_file(tmp_path / "state"), load_model(str(coded("qwen3")), device="cpu").state_dict()
    assert {*found} == {*wanted}
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_autoload_adds_one_finder_and_imports_nothing_else(environment: Environment) -> None:
    assert environment.run(FINDERS).stdout == "['_BeforeQuantizers']\n"
    code = "import sys; print(sorted(sys.modules))"
    with_it, without = environment.run(code).stdout, environment.run(code, HLWQ_AUTOLOAD="0").stdout
    assert with_it == without
    assert "'hlwq_autoload'" in with_it
    assert "'hlwq_cli'" not in with_it


def test_autoload_is_turned_off_by_a_variable(environment: Environment) -> None:
    assert environment.run(FINDERS, HLWQ_AUTOLOAD="0").stdout == "[]\n"


def test_transformers_that_hlwq_cannot_use_still_imports(environment: Environment, tmp_path: Path) -> None:
    (tmp_path / "transformers" / "quantizers").mkdir(parents=True)
    (tmp_path / "transformers" / "__init__.py").touch()
    (tmp_path / "transformers" / "quantizers" / "__init__.py").write_text("here = 1")  # of a version from long ago
    code = "import transformers.quantizers as q; print(q.here, type(q.__loader__).__name__)"
    run = environment.run(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}")
    assert (run.returncode, run.stdout) == (0, "1 SourceFileLoader\n"), run.stderr
    assert run.stderr.count("hlwq cannot register with transformers") == 1


def test_an_editable_install_and_a_removed_one(editable: Environment, tmp_path: Path) -> None:
    (editable.site / "zz_packages_of_the_tests.pth").write_text("")  # neither Python nor pip must see another hlwq
    assert editable.run(FINDERS).stdout == "['_BeforeQuantizers']\n"
    (editable.site / "hlwq_autoload.py").rename(tmp_path / "kept.py")
    run = editable.run(FINDERS, "-W", "error")  # as if half of it were gone
    assert (run.returncode, run.stdout, run.stderr) == (0, "[]\n", "")
    (tmp_path / "kept.py").rename(editable.site / "hlwq_autoload.py")
    editable.pip("uninstall", "--yes", "hlwq")
    assert [path.name for path in editable.site.rglob("*hlwq*") if path.is_file()] == []
    run = editable.run(FINDERS, "-W", "error")
    assert (run.returncode, run.stdout, run.stderr) == (0, "[]\n", "")
