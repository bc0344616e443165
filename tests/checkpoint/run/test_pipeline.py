"""Workers, devices and shards in flight: whatever the arrangement, the bytes and the errors are the same."""

import json
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from hlwq_cli.checkpoint import Plan, load_recipe, make_plan, open_source, quantize
from hlwq_cli.checkpoint.io import Source
from hlwq_cli.checkpoint.run import pipeline as pipeline_module
from hlwq_cli.checkpoint.run.devices import Device, worker_count
from hlwq_cli.checkpoint.run.schedule import Work
from hlwq_cli.checkpoint.run.trace import Trace
from hlwq_cli.checkpoint.run.worker_pool import RunOptions
from hlwq_cli.devices import find_devices
from hlwq_cli.errors import NonFiniteError, UsageError
from tests.support.builders import LLAMA, dense, save_shards, save_tensors
from tests.support.files import tree

Family = Callable[[str], Path]

# `hlwq_cli.checkpoint.run.quantize` names the function of the face.
quantize_module = import_module("hlwq_cli.checkpoint.run.quantize")


@pytest.mark.parametrize("device", ["auto", "cpu,cpu", "cpu,cpu,cpu"])
def test_devices_do_not_change_a_byte(
    family: Family, coded: Family, family_name: str, device: str, tmp_path: Path
) -> None:
    quantize(str(family(family_name)), tmp_path / "out", load_recipe(), device=device, max_shard_bytes=150_000)
    assert tree(tmp_path / "out") == tree(coded(family_name))


@pytest.mark.parametrize("weights", [1, 500, 2**24])
def test_size_of_slices_does_not_change_a_byte(
    family: Family, coded: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: int
) -> None:
    monkeypatch.setattr(pipeline_module, "SLICE_WEIGHTS", weights)
    quantize(str(family("qwen3_moe")), tmp_path / "out", load_recipe(), max_shard_bytes=150_000)
    assert tree(tmp_path / "out") == tree(coded("qwen3_moe"))


@pytest.mark.parametrize("at_once", [2, 3, 100])
def test_shards_that_take_turns_have_the_same_bytes_and_turns(
    family: Family, coded: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    taken: list[str] = []
    usual = pipeline_module.interleave_shards

    def interleave_shards(source: Source, work: Work, _: int) -> Work:
        ordered = usual(source, work, at_once)
        assert sorted(map(id, (piece for _, piece in ordered))) == sorted(map(id, (piece for _, piece in work)))
        taken.extend(shard.file for shard, _ in ordered)
        return ordered

    monkeypatch.setattr(pipeline_module, "SLICE_WEIGHTS", 5000)
    monkeypatch.setattr(pipeline_module, "interleave_shards", interleave_shards)
    quantize(str(family("qwen3_moe")), tmp_path / "out", load_recipe(), max_shard_bytes=150_000)
    assert tree(tmp_path / "out") == tree(coded("qwen3_moe"))
    assert sum(a != b for a, b in pairwise(taken)) > len(set(taken))  # in turn, not one after the other


def test_switch_interval_is_short_while_gpus_encode_and_restored_afterwards(family: Family, tmp_path: Path) -> None:
    source = open_source(str(family("llama")))
    before, during = sys.getswitchinterval(), []
    for place in ("cpu", "cuda"):
        device = Device(torch.device(place))
        options = RunOptions((device,), 2, Trace(recording=False))
        with pipeline_module.Pipeline(source, tmp_path, [], options):
            during.append(sys.getswitchinterval())
        assert sys.getswitchinterval() == before
    source.close()
    assert during == [before, pytest.approx(0.0005)]


def test_experts_spread_over_all_files_are_coded_file_by_file(family: Family, coded: Family, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tensors = {n: t for f in sorted(family("qwen3_moe").glob("*.safetensors")) for n, t in load_file(f).items()}
    files = {f"model-{i:05}-of-00003.safetensors": dict(list(tensors.items())[i - 1 :: 3]) for i in (1, 2, 3)}
    config = json.loads((family("qwen3_moe") / "config.json").read_text())
    spread = save_shards(tmp_path / "qwen3_moe", files, config)
    quantize(str(spread), tmp_path / "out", load_recipe())
    records = [json.loads((f / "hlwq_manifest.json").read_text()) for f in (tmp_path / "out", coded("qwen3_moe"))]
    ours, theirs = ({t["name"]: t["blake3"] for t in r["coded"] + r["kept"]} for r in records)
    assert ours == theirs


@pytest.mark.parametrize("threads", [1, 4])
def test_first_bad_weight_of_the_source_is_named_whichever_worker_is_faster(tmp_path: Path, threads: int) -> None:
    tensors = dense(6, 256)
    for layer, row in ((2, 200), (4, 0)):
        tensors[f"model.layers.{layer}.self_attn.q_proj.weight"][row, 7] = float("nan")
    model = save_tensors(tmp_path / "m", tensors, LLAMA)
    with pytest.raises(NonFiniteError, match=r"layers\.2\.self_attn\.q_proj\.weight\[200, 7\] is nan"):
        quantize(str(model), tmp_path / "out", load_recipe(), threads=threads)
    assert not [p.name for p in (tmp_path / "out").iterdir() if p.name.endswith((".partial", ".safetensors"))]


@pytest.mark.parametrize("wanted", ["gpu", "cuda:", "cuda:x", "cpu:1", "", "cuda:9999", "cpu,,cpu", "mps"])
def test_unknown_or_absent_device_is_refused(wanted: str) -> None:
    with pytest.raises(UsageError, match=r"^(Unknown|There is no) device .*--device"):
        find_devices(wanted)


def test_every_device_has_a_worker() -> None:
    devices = [Device(found) for found in find_devices("cpu,cpu,cpu")]
    assert worker_count(devices, 1) == 3
    assert worker_count(devices, 5) == 5


def test_trace_counts_every_byte_read_hashed_and_written(family: Family, tmp_path: Path) -> None:
    trace = Trace()
    result = quantize(str(family("llama")), tmp_path / "out", load_recipe(), trace=trace)
    moved = {what: sum(n for w, n, *_ in trace.spans if w == what) for what in ("read", "write", "hash tensor")}
    stored = result.manifest.coded_bytes + result.manifest.kept_bytes
    assert moved == {"read": result.manifest.source_bytes, "write": stored, "hash tensor": stored}
    trace.save(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert all(e["dur"] >= 0 and e["ts"] > 0 for e in events if e["ph"] == "X")


def test_workers_begin_after_the_kernels_are_ready(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else those threads would take Python's lock from the one that starts the kernels."""
    happened, go = [], threading.Event()

    def start_kernels() -> None:
        go.wait()
        happened.append("kernels")

    def warm_up(*_: object) -> list[threading.Thread]:
        thread = threading.Thread(target=start_kernels)
        thread.start()
        return [thread]

    def planned(*arguments: Any) -> Plan:
        happened.append("plan")
        go.set()
        return make_plan(*arguments)

    def taken(*arguments: Any, **settings: Any) -> pipeline_module.Pipeline:
        happened.append("workers")
        return pipeline_module.Pipeline(*arguments, **settings)

    monkeypatch.setattr(quantize_module, "warm_up", warm_up)
    monkeypatch.setattr(quantize_module, "make_plan", planned)
    monkeypatch.setattr(quantize_module, "Pipeline", taken)
    quantize(str(family("llama")), tmp_path / "out", load_recipe())
    assert happened == ["plan", "kernels", "workers"]
