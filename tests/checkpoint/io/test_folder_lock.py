"""One process at a time writes into a folder; the second one is refused at once, and the first is not disturbed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hlwq_cli.checkpoint import load_recipe, quantize
from hlwq_cli.checkpoint.io import locked_folder
from hlwq_cli.errors import ConflictError
from tests.cli.run_command import assert_refused, hlwq
from tests.support.builders import LLAMA, dense, save_tensors, tiny_llama
from tests.support.files import tree

Copied = Callable[[Path], Path]


def test_locked_folder_takes_no_second_writer(coded: Callable[[str], Path], copied: Copied) -> None:
    out = copied(coded("qwen3"))
    before = tree(out)
    with locked_folder(out):
        for command in (["card", out], ["push", out, "ann/model"], ["quantize", out.parent, out]):
            assert_refused(hlwq(*command), 5, "Another process of hlwq writes into", "Wait until it has ended")
        assert hlwq("inspect", out, "--verify").code == 0
    assert tree(out) == before
    assert hlwq("card", out).code == 0


def test_locked_output_of_an_export_is_refused(coded: Callable[[str], Path], tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    with locked_folder(plain):
        assert_refused(hlwq("export", coded("qwen3"), plain), 5, "Another process of hlwq writes into")
    assert list(plain.iterdir()) == []


def test_lock_leaves_no_file_and_ends_with_its_process(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        with locked_folder(tmp_path):
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with locked_folder(tmp_path):
        assert list(tmp_path.iterdir()) == []


def test_file_system_that_cannot_lock_folders_locks_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On NFS an exclusive lock needs a file that is open for writing."""
    import filelock

    usual = filelock.lock_descriptor

    def no_folders(descriptor: int, *, blocking: bool = True) -> bool:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(9, "Bad file descriptor")
        return usual(descriptor, blocking=blocking)

    monkeypatch.setattr(filelock, "lock_descriptor", no_folders)
    with locked_folder(tmp_path):
        assert [p.name for p in tmp_path.iterdir()] == [".hlwq.lock"]
        with pytest.raises(ConflictError), locked_folder(tmp_path):
            pass
    assert hlwq("quantize", tiny_llama(tmp_path.parent / "m"), tmp_path).code == 0


@pytest.mark.parametrize("delay", range(4))
def test_of_two_runs_at_once_one_finishes_and_the_other_is_refused(tmp_path: Path, delay: int) -> None:
    model = save_tensors(tmp_path / "m", dense(4), LLAMA)
    out, recipe = tmp_path / "out", load_recipe()
    reached, go = threading.Barrier(2), threading.Event()
    ends: list[object] = []

    def run(is_first: bool) -> None:
        reached.wait()
        if not is_first:
            go.wait(delay * 0.01)
        try:
            ends.append(quantize(str(model), out, recipe, max_shard_bytes=20_000, threads=1).already_complete)
        except ConflictError as error:
            ends.append(str(error))

    threads = [threading.Thread(target=run, args=(first,)) for first in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    quantize(str(model), tmp_path / "alone", recipe, max_shard_bytes=20_000, threads=1)
    assert tree(out) == tree(tmp_path / "alone")
    refused = [end for end in ends if isinstance(end, str)]
    assert all("Another process of hlwq writes into" in text for text in refused)
    assert len(refused) < 2
