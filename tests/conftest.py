"""What all tests share: checkpoints built once a session, and a Hub on loopback instead of the real one.

huggingface_hub reads its environment when it is imported, so the stand-in is up before any test is collected.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .support.builders import FAMILIES, save_family
from .support.hub_server import HubServer

MEMORY = Path("/dev/shm")
MIN_FREE_MEMORY_BYTES = 2 * 2**30

# hlwq syncs every file that it writes: 13 ms on a disk, .3 ms in memory. SIGKILL leaves the same behind in both.
if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MIN_FREE_MEMORY_BYTES and "TMPDIR" not in os.environ:
    os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)
HUB_HOME = tempfile.TemporaryDirectory(prefix="hlwq-hub-home-")
HUB = HubServer()
os.environ.update(HUB.environment(Path(HUB_HOME.name)))
os.environ.pop("HF_TOKEN", None)


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A family's checkpoint; written when first asked for, never to be changed."""
    built: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in built:
            built[name] = save_family(name, tmp_path_factory.mktemp("source") / name)
        return built[name]

    return get


@pytest.fixture(scope="session")
def coded(family: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A family's checkpoint, quantized with default settings in several files; never to be changed."""
    from hlwq_cli.checkpoint import load_recipe, quantize

    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            out = tmp_path_factory.mktemp("coded") / f"{name}-coded"
            quantize(str(family(name)), out, load_recipe(), max_shard_bytes=150_000)
            made[name] = out
        return made[name]

    return get


@pytest.fixture(scope="session")
def coded_sample(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The bundled sample, quantized with default settings; never to be changed."""
    from hlwq_cli.checkpoint import load_recipe, quantize
    from hlwq_cli.samples import resolve_model

    folder = tmp_path_factory.mktemp("coded") / "sample"
    quantize(resolve_model("sample"), folder, load_recipe())
    return str(folder)


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """A copy of a folder that a test may break."""

    def copy(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / f"copy-of-{folder.name}"))

    return copy


@pytest.fixture
def memory_folder() -> Iterator[Path]:
    """An empty folder in memory, where syncing a file costs nothing."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="hlwq-test-") as folder:
        yield Path(folder)


@pytest.fixture(params=sorted(FAMILIES))
def family_name(request: pytest.FixtureRequest) -> str:
    """Each family in turn."""
    return str(request.param)


@pytest.fixture
def hub() -> HubServer:
    """The stand-in Hub, with no repositories."""
    HUB.reset()
    return HUB
