"""What all tests share: checkpoints built once a session, and a Hub on loopback instead of the real one.

huggingface_hub reads its environment when it is imported, so the stand-in is up before any test is collected.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import pytest

from .support.builders import FAMILIES, save_family
from .support.hub_server import HubServer
from .support.workers import made_once, rank, shared_folder

MEMORY = Path("/dev/shm")
MIN_FREE_MEMORY_BYTES = 2 * 2**30

# hlwq syncs every file that it writes: 13 ms on a disk, .3 ms in memory. SIGKILL leaves the same behind in both.
if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MIN_FREE_MEMORY_BYTES and "TMPDIR" not in os.environ:
    os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)
HUB_HOME = tempfile.TemporaryDirectory(prefix="hlwq-hub-home-")
HUB = HubServer()
os.environ.update(HUB.environment(Path(HUB_HOME.name)))
os.environ.pop("HF_TOKEN", None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    from .support.scheduler import LongestFirst

    return LongestFirst(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: rank(item.nodeid))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """A folder that all workers of this session share; see `made_once`."""
    return shared_folder(tmp_path_factory, pytestconfig)


@pytest.fixture(scope="session")
def family(shared: Path) -> Callable[[str], Path]:
    """A family's checkpoint; written when first asked for, never to be changed."""

    @lru_cache(maxsize=None)
    def get(name: str) -> Path:
        return made_once(shared / "source" / name, lambda folder: save_family(name, folder))

    return get


@pytest.fixture(scope="session")
def coded(family: Callable[[str], Path], shared: Path) -> Callable[[str], Path]:
    """A family's checkpoint, quantized with default settings in several files; never to be changed."""
    from hlwq_cli.checkpoint import load_recipe, quantize

    @lru_cache(maxsize=None)
    def get(name: str) -> Path:
        def make(folder: Path) -> None:
            quantize(str(family(name)), folder, load_recipe(), max_shard_bytes=150_000)

        return made_once(shared / "coded" / f"{name}-coded", make)

    return get


@pytest.fixture(scope="session")
def coded_sample(shared: Path) -> str:
    """The bundled sample, quantized with default settings; never to be changed."""
    from hlwq_cli.checkpoint import load_recipe, quantize
    from hlwq_cli.samples import resolve_model

    def make(folder: Path) -> None:
        quantize(resolve_model("sample"), folder, load_recipe())

    return str(made_once(shared / "coded" / "sample", make))


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
