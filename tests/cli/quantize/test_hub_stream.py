"""Quantize while downloading: the next file is fetched while one is coded, and --delete-source removes files."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from hlwq_cli.checkpoint import Progress, load_recipe, quantize
from hlwq_cli.errors import HlwqError
from tests.cli.run_command import assert_refused, hlwq, hlwq_process, start
from tests.support.builders import LLAMA, add_sidecar_files, save_shards
from tests.support.files import tree
from tests.support.hub_server import HubServer

FILES = [f"model-{i:05}-of-00012.safetensors" for i in range(1, 13)]
PRIVATE, JOURNAL = ".hlwq_source", ".hlwq_run.jsonl"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of twelve files with one matrix each."""
    generator = torch.Generator().manual_seed(3)
    shards = {
        file: {f"model.layers.{i}.self_attn.q_proj.weight": torch.randn(1024, 1024, generator=generator).bfloat16()}
        for i, file in enumerate(FILES)
    }
    folder = save_shards(tmp_path_factory.mktemp("streamed") / "model", shards, LLAMA)
    add_sidecar_files(folder)
    return folder


def run(repo: str, out: Path, **options: Any) -> None:
    quantize(repo, out, load_recipe(), max_shard_bytes=10**6, threads=1, **options)


def asked_for(hub: HubServer) -> list[str]:
    """Return the weight files that the Hub sent completely, in order."""
    paths = [r.path for r in hub.requests if r.path.startswith("/storage/") and r.sent > 10**6]
    return [Path(p).name for p in paths]


def held(out: Path) -> int:
    """Return the source files on disk, complete or partial; each has its own folder."""
    try:
        return len(os.listdir(out / PRIVATE))
    except FileNotFoundError:
        return 0


@contextmanager
def most_held(out: Path) -> Iterator[list[int]]:
    """Counts the source files on disk, partial ones included, every two milliseconds."""
    seen, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.002):
            seen[0] = max(seen[0], held(out))

    thread = threading.Thread(target=watch)
    thread.start()
    yield seen
    stop.set()
    thread.join()


def test_only_the_next_file_is_fetched_while_one_is_coded(hub: HubServer, model: Path, tmp_path: Path) -> None:
    hub.publish("tests/ahead", model)
    seen = []

    def wait_in_first(event: Progress) -> None:
        if not seen and not event.file_done:
            until = time.monotonic() + 20
            while len(asked_for(hub)) < 2 and time.monotonic() < until:
                time.sleep(0.01)
            time.sleep(0.3)
            seen.extend(asked_for(hub))

    run("tests/ahead", tmp_path / "out", progress=wait_in_first)
    assert seen[:2] == FILES[:2]
    assert FILES[3] not in seen
    assert asked_for(hub) == FILES


def test_delete_source_holds_at_most_two_files_and_gives_the_same_bytes(
    hub: HubServer, model: Path, tmp_path: Path
) -> None:
    hub.publish("tests/deleted", model)
    with most_held(tmp_path / "out") as most:
        run("tests/deleted", tmp_path / "out", delete_source=True)
    assert 1 <= most[0] <= 2
    assert not (tmp_path / "out" / PRIVATE).exists()
    assert asked_for(hub) == FILES
    hub.requests.clear()
    run("tests/deleted", tmp_path / "cached")
    assert asked_for(hub) == FILES  # the cache had none of them
    assert tree(tmp_path / "out") == tree(tmp_path / "cached")


def test_killed_run_with_delete_source_resumes_with_the_same_command(
    hub: HubServer, model: Path, tmp_path: Path
) -> None:
    hub.publish("tests/killed", model)
    out = tmp_path / "out"
    command = ["quantize", "tests/killed", out, "--delete-source", "--threads", "1", "--max-shard-size", "1MB"]
    process = start(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and lines(out / JOURNAL) < 4:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    done = lines(out / JOURNAL) - 1
    hub.requests.clear()
    with most_held(out) as most:
        assert hlwq_process(*command).code == 0
    assert most[0] <= 2
    assert not set(asked_for(hub)) & set(FILES[:done])
    run("tests/killed", tmp_path / "whole")
    assert tree(out) == tree(tmp_path / "whole")


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_failed_download_ends_the_run_and_the_next_run_resumes(hub: HubServer, model: Path, tmp_path: Path) -> None:
    hub.publish("tests/broken-later", model)

    def break_it(event: Progress) -> None:
        hub.fail(rf"^GET /storage/.*{FILES[5]}", 404)

    with pytest.raises(HlwqError, match="answered 404 for tests/broken-later"):
        run("tests/broken-later", tmp_path / "out", delete_source=True, progress=break_it)
    hub.reset()
    hub.publish("tests/broken-later", model)
    run("tests/broken-later", tmp_path / "out", delete_source=True)
    assert FILES[0] not in asked_for(hub)
    assert not (tmp_path / "out" / PRIVATE).exists()


def test_local_sources_are_never_deleted(model: Path, tmp_path: Path) -> None:
    before = tree(model)
    assert_refused(hlwq("quantize", model, tmp_path / "out", "--delete-source"), 2, "--delete-source needs a Hub id")
    assert tree(model) == before
