"""Tensors lie in a shard in their planned order and aligned, whatever their types; hashes follow what is written."""

import json
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from blake3 import blake3

from hlwq_cli.checkpoint import KeptTensor, Recipe, load_recipe, quantize
from hlwq_cli.checkpoint.format import Shard, ShardWriter
from hlwq_cli.checkpoint.io import DTYPES, TensorInfo, read_header
from hlwq_cli.checkpoint.run import Trace, open_shard, pipeline
from hlwq_cli.checkpoint.run.open_shard import OpenShard, RunningHash
from hlwq_cli.checkpoint.run.slices import slices
from hlwq_cli.codec import SquaredError
from hlwq_cli.errors import ConflictError, CorruptError
from tests.support.builders import LLAMA, dense, save_tensors
from tests.support.files import opens_with_safetensors, read_json, tree

ODD = {
    "a.scalar": torch.tensor(1.5, dtype=torch.float64),
    "b.scalar": torch.ones(1, dtype=torch.bfloat16),
    "c.mask": torch.ones(3, dtype=torch.bool),
    "d.bias": torch.arange(5, dtype=torch.float32),
    "e.steps": torch.arange(3),
    "f.nothing": torch.empty(0, 4),
    "g.weight": torch.ones(7, 192).bfloat16(),
    "h.weight": torch.ones(1, 1000).bfloat16(),
    "model.layers.0.mlp.gate_proj.weight": torch.ones(5, 4096).bfloat16(),
}


@pytest.mark.parametrize("recipe", [load_recipe(bits=b) for b in range(2, 9)] + [load_recipe("classic")])
def test_every_tensor_is_aligned_to_its_type(tmp_path: Path, recipe: Recipe) -> None:
    source = save_tensors(tmp_path / "m", dense(2, 192) | ODD, LLAMA)
    result = quantize(str(source), tmp_path / "out", recipe)
    assert {tuple(t.shape) for t in result.manifest.coded} >= {(5, 4096), (192, 192)}
    tensors = read_header(tmp_path / "out" / "model.safetensors", "file")[0].values()
    assert [t.name for t in tensors if t.offset % DTYPES[t.dtype].itemsize] == []
    assert opens_with_safetensors(tmp_path / "out")


def test_tensors_that_could_break_alignment_come_last(tmp_path: Path) -> None:
    source = save_tensors(tmp_path / "m", dense(2, 192) | ODD, LLAMA)
    quantize(str(source), tmp_path / "out", load_recipe())
    found = sorted(read_header(tmp_path / "out" / "model.safetensors", "file")[0].values(), key=lambda t: t.offset)
    planned = [n for t in read_header(source / "model.safetensors", "file")[0].values() for n in written(t)]
    planned = [n for n in planned if n in {t.name for t in found}]
    odd = [t for t in found if t.name in names_of_odd(found)]
    assert [t.name for t in found] == [n for n in planned if n not in names_of_odd(found)] + [t.name for t in odd]
    sizes = [DTYPES[t.dtype].itemsize for t in odd]
    assert sizes == sorted(sizes, reverse=True)
    assert {"d.bias", "b.scalar", "c.mask", "model.layers.0.mlp.gate_proj.base"} < {t.name for t in odd}


def written(source: TensorInfo) -> list[str]:
    name = source.name.removesuffix(".weight")
    return [source.name, *(f"{name}.{kind}" for kind in ("codes", "scales", "base"))]


def names_of_odd(found: list[TensorInfo]) -> set[str]:
    names = {t.name.removesuffix(".base").removesuffix(".scales").removesuffix(".codes") for t in found if t.nbytes % 8}
    return {n for name in names for n in (name, *written(TensorInfo(name, "", (), "", 0, 0)))}


@pytest.mark.parametrize("step", [1, 20_000])
def test_running_hashes_equal_the_hashes_of_whole_tensors(
    coded: Callable[[str], Path],
    family: Callable[[str], Path],
    family_name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    monkeypatch.setattr(open_shard, "STEP_BYTES", step)
    trace = Trace()
    source = str(family(family_name))
    monkeypatch.setattr(pipeline, "SLICE_WEIGHTS", 5000)
    made = quantize(source, tmp_path / "out", load_recipe(), max_shard_bytes=150_000, threads=2, trace=trace)
    assert tree(tmp_path / "out") == tree(coded(family_name))
    steps = [n for what, n, *_ in trace.spans if what == "hash tensor"]
    assert sum(steps) == made.manifest.coded_bytes + made.manifest.kept_bytes  # each byte once
    if step == 1:
        assert len(steps) > len(made.manifest.coded) + len(made.manifest.kept)


def kept_bytes(name: str, length: int) -> KeptTensor:
    return KeptTensor(TensorInfo(name, "U8", (length,), "file", 0, length), "other", "")


class Filled:
    """Three tensors of 4,000 bytes in one shard, written in slices of 1,000 in any order."""

    def __init__(self, folder: Path, pool: ThreadPoolExecutor) -> None:
        self.shard = Shard("s.safetensors", tuple(kept_bytes(name, 4000) for name in "abc"))
        self.pool, self.trace = pool, Trace()
        self.pieces = list(slices(self.shard, 500))
        pending = Counter(p.planned.name for p in self.pieces)
        self.open_shard = OpenShard(self.shard, ShardWriter(folder, self.shard), pending, self.trace)
        self.start = self.open_shard.writer.byte_ranges["a"][0]

    def mark_written(self, number: int) -> int:
        """Land a slice; returns how much of its tensor is written without a gap."""
        piece = self.pieces[number]
        self.open_shard.writer.write(piece.planned.name, piece.start, bytearray([number]) * piece.length)
        self.open_shard.mark_written(piece, SquaredError(), self.pool)
        return self.open_shard.written[piece.planned.name]


@pytest.fixture
def filled(tmp_path: Path) -> Filled:
    return Filled(tmp_path, ThreadPoolExecutor(1))


def test_a_tensor_is_hashed_as_far_as_it_is_written_without_a_gap(
    filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_shard, "STEP_BYTES", 1)
    assert [filled.mark_written(n) for n in (4, 5, 7, 0, 1, 6, 3)] == [1000, 2000, 2000, 1000, 2000, 3000, 2000]
    assert [filled.mark_written(n) for n in (11, 10, 9)] == [0, 0, 0]
    filled.pool.shutdown()
    assert sum(n for _, n, *_ in filled.trace.spans) <= 4000 + 2000


def test_hashes_of_slices_out_of_order_are_right(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_shard, "STEP_BYTES", 500)
    for number in (0, 1, 4, 2, 3, 5, 8, 7, 6, 11, 10, 9):
        filled.mark_written(number)
    found = {name: future.result() for name, future in filled.open_shard.hashes.items()}
    filled.open_shard.writer.finish()
    data = filled.open_shard.writer.path.read_bytes()
    parts = [data[filled.start + i * 4000 :][:4000] for i in range(3)]
    assert parts[1] == b"".join(bytes([n]) * 1000 for n in (4, 5, 6, 7))
    assert found == {name: blake3(part).hexdigest() for name, part in zip("abc", parts, strict=True)}


def test_writeback_starts_once_for_every_hashed_byte(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_shard, "STEP_BYTES", 500)
    given, advise = [], os.posix_fadvise

    def noted(file: int, start: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_DONTNEED
        given.append((start, length))
        advise(file, start, length, advice)

    monkeypatch.setattr(os, "posix_fadvise", noted)
    for number in (0, 1, 4, 2, 3, 5, 8, 7, 6, 11, 10, 9):
        filled.mark_written(number)
    filled.pool.shutdown()
    assert len(given) > 3
    assert sorted(byte for start, length in given for byte in range(start, start + length)) == list(
        range(filled.start, filled.start + 12_000)
    )


@pytest.mark.parametrize("system", ["without", "refusing"])
def test_writeback_is_skipped_if_the_system_does_not_support_it(
    filled: Filled, monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    def refused(*_: int) -> None:
        raise OSError(22, "no")

    if system == "without":
        monkeypatch.delattr(os, "posix_fadvise")
    else:
        monkeypatch.setattr(os, "posix_fadvise", refused)
    for number in range(12):
        filled.mark_written(number)
    assert {name: len(future.result()) for name, future in filled.open_shard.hashes.items()} == dict.fromkeys("abc", 64)


def test_a_step_that_fails_fails_the_hash(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_shard, "STEP_BYTES", 500)
    writer = filled.open_shard.writer
    for ask in ("follow", "finish"):
        running = RunningHash(writer, [(writer.size, 1000), (0, 10)], filled.trace)
        running.follow(filled.pool, writer.size + 600)
        filled.pool.submit(lambda: None).result()
        with pytest.raises(CorruptError, match="cut short"):
            running.follow(filled.pool, writer.size + 1000) if ask == "follow" else running.finish(filled.pool).result()


def test_a_run_with_another_layout_is_not_resumed(tmp_path: Path) -> None:
    source = save_tensors(tmp_path / "m", dense(), LLAMA)
    quantize(str(source), tmp_path / "done", load_recipe())
    begun = read_json(tmp_path / "done" / "hlwq_manifest.json")["fingerprint"]
    assert begun.pop("layout") == 2
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".hlwq_run.jsonl").write_text(json.dumps(begun) + "\n")
    with pytest.raises(ConflictError, match=r"unfinished run that differs in layout \(now 2, then None\)"):
        quantize(str(source), tmp_path / "out", load_recipe())


def test_a_shard_that_is_closed_is_not_hashed_as_zeros(tmp_path: Path) -> None:
    shard = Shard("s.safetensors", (kept_bytes("a", 64),))
    writer = ShardWriter(tmp_path, shard)
    writer.abandon()
    with pytest.raises(AssertionError, match="closed"):
        writer.hash_range(blake3(), 0, 64)
