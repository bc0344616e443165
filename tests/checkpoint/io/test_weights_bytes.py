"""The size of a checkpoint's weights is that of the files that transformers would load."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from hlwq_cli.checkpoint.io import HubRepo, weights_bytes
from hlwq_cli.measure.sizes import weights_size
from tests.runtime import kinds
from tests.support.hub_server import HubServer


def with_other_weights(folder: Path) -> int:
    """Add files that transformers does not load with the model; return the bytes of those that it does."""
    kinds.llama(folder)
    loaded = (folder / "model.safetensors").stat().st_size
    for name in ("consolidated.safetensors", "adapter_model.safetensors", "model-00001-of-00009.safetensors"):
        save_file({"x": torch.zeros(999)}, folder / name)
    return loaded


def test_copies_adapters_and_stale_shards_of_a_folder_do_not_count(tmp_path: Path) -> None:
    loaded = with_other_weights(tmp_path)
    assert weights_bytes(tmp_path) == loaded
    assert weights_size(str(tmp_path)) == (loaded, None)


def test_a_repository_counts_as_its_folder_does(hub: HubServer, tmp_path: Path) -> None:
    loaded = with_other_weights(tmp_path)
    hub.publish("owner/plain", tmp_path)
    assert weights_bytes(HubRepo.find("owner/plain", None)) == loaded
    assert weights_size("owner/plain") == (loaded, None)


def test_shards_of_the_index_count_also_in_sub_folders(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    save_file({"a": torch.zeros(8)}, tmp_path / "one.safetensors")
    save_file({"b": torch.zeros(16)}, tmp_path / "part" / "two.safetensors")
    save_file({"c": torch.zeros(32)}, tmp_path / "three.safetensors")
    index = '{"weight_map": {"a": "one.safetensors", "b": "part/two.safetensors"}}'
    (tmp_path / "model.safetensors.index.json").write_text(index)
    expected = sum((tmp_path / n).stat().st_size for n in ("one.safetensors", "part/two.safetensors"))
    assert weights_bytes(tmp_path) == expected


def test_pickled_weights_count_where_there_are_no_others(tmp_path: Path) -> None:
    for name in ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "optimizer.bin"):
        (tmp_path / name).write_bytes(b"12345")
    assert weights_bytes(tmp_path) == 10
