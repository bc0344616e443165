"""The built wheel runs by itself: both packages, types, configs and licence are inside."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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
    configs = {str(p.relative_to(ROOT)) for p in (ROOT / "configs").rglob("*.yaml")}
    assert {f"hlwq_cli/{c}" for c in configs} <= names
    assert "hlwq_cli/ui/demo/page.css" in names
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert not [n for n in names if n.startswith(("tests/", "scripts/", "kernels/"))]


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
