"""hlwq_manifest.json and config.json say what docs/format.md promises."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3

from hlwq_cli import __version__
from hlwq_cli.checkpoint import load_recipe, quantize
from hlwq_cli.checkpoint.format.manifest import read_manifest
from hlwq_cli.checkpoint.format.verify import with_all_hashes
from hlwq_cli.codec import lloyd_max
from hlwq_cli.progress import Progress
from tests.support.builders import LLAMA, dense, save_tensors
from tests.support.files import read_file, read_json, read_tensors, tree

Family = Callable[[str], Path]


def manifest(folder: Path) -> dict[str, Any]:
    return read_json(folder / "hlwq_manifest.json")


def settings(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = read_json(folder / "config.json")["quantization_config"]
    return config


def test_manifest_has_size_of_every_other_file_and_sha256_of_all_but_shards(coded: Family, family_name: str) -> None:
    folder = coded(family_name)
    on_disk = {n: sha for n, sha in tree(folder).items() if n != "hlwq_manifest.json"}
    stated = {n: None if n.endswith(".safetensors") else sha for n, sha in on_disk.items()}
    assert {f["name"]: f["sha256"] for f in manifest(folder)["files"]} == stated
    assert {f["name"]: f["size"] for f in manifest(folder)["files"]} == {n: (folder / n).stat().st_size for n in stated}


def test_manifest_gets_the_sha256_of_every_file_and_keeps_their_order(coded: Family) -> None:
    folder, events = coded("gemma4"), list[Progress]()
    before, on_disk = read_manifest(folder), tree(folder)
    after = with_all_hashes(folder, before, events.append)
    assert after.files == tuple(replace(f, sha256=on_disk[f.name]) for f in before.files)
    total = sum(f.size for f in before.files if f.is_shard)
    assert (events[-1].done, {e.total for e in events}) == (total, {total})
    assert (after.digest, after.coded, after.kept) == (before.digest, before.coded, before.kept)


def test_manifest_has_bytes_and_hash_of_codes_scales_and_base(coded: Family, family_name: str) -> None:
    tensors = read_tensors(coded(family_name))
    for record in manifest(coded(family_name))["coded"]:
        prefix, _, last = record["name"].rpartition(".")
        stack = len(record["shape"]) == 3
        names = [f"{prefix}.{k}_{last}" if stack else f"{record['name']}.{k}" for k in ("codes", "scales", "base")]
        data = b"".join(tensors[n].data for n in names)
        assert (record["bytes"], record["blake3"]) == (len(data), blake3(data).hexdigest())


def test_manifest_has_hash_of_every_kept_tensor(coded: Family, family_name: str) -> None:
    tensors = read_tensors(coded(family_name))
    for record in manifest(coded(family_name))["kept"]:
        stored = tensors[record["name"]]
        assert record["blake3"] == blake3(stored.data).hexdigest()
        assert (record["dtype"], tuple(record["shape"])) == (stored.dtype, stored.shape)


def test_manifest_names_source_rule_and_tool_and_no_path_of_this_machine(family: Family, coded: Family) -> None:
    document = manifest(coded("gemma4"))
    assert document["source"] == {"id": "gemma4", "revision": None}
    assert document["tool"] == {"name": "hlwq", "version": __version__}
    assert document["rule"] == "architecture file gemma4.yaml"
    assert document["source_bytes"] == sum(len(t.data) for t in read_tensors(family("gemma4")).values())
    assert str(family("gemma4").parent) not in (coded("gemma4") / "hlwq_manifest.json").read_text()


def test_every_file_of_weights_repeats_the_format_version(coded: Family) -> None:
    import json

    for path in coded("gemma4").glob("*.safetensors"):
        raw = path.read_bytes()
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        assert header["__metadata__"] == {"format": "pt", "format_version": "1"}


def test_config_describes_the_scheme(coded: Family) -> None:
    found = settings(coded("gemma4"))
    assert {k: found[k] for k in ("quant_method", "format_version", "bits", "block_size", "scale")} == {
        "quant_method": "hlwq",
        "format_version": 1,
        "bits": 5,
        "block_size": 64,
        "scale": "log8",
    }
    assert (found["rotation"], found["codebook"]) == ("hadamard", "lloyd-max")
    assert found["source"] == {"repo": None, "revision": None}
    assert found["tensors"] == {}


@pytest.mark.parametrize("bits", range(2, 9))
def test_codebooks_read_back_exactly_as_float32(tmp_path: Path, bits: int) -> None:
    source = save_tensors(tmp_path / "m", dense(), LLAMA)
    quantize(str(source), tmp_path / "out", load_recipe(bits=bits))
    books = settings(tmp_path / "out")["codebooks"]
    assert list(books) == [str(bits)]
    true = np.array(lloyd_max(bits), dtype=np.float32)
    assert np.array_equal(np.array(books[str(bits)], dtype=np.float32), true)
    assert all(float(np.float32(c)) == c for c in books[str(bits)])


def test_bits_per_weight_counts_every_stored_bit_of_coded_tensors(coded: Family) -> None:
    tensors, document = read_tensors(coded("gemma4")), manifest(coded("gemma4"))
    kept = {k["name"] for k in document["kept"]}
    stored = sum(len(t.data) for n, t in tensors.items() if n not in kept)
    weights = sum(int(np.prod(t["shape"])) for t in document["coded"])
    assert settings(coded("gemma4"))["bpw"] == pytest.approx(8 * stored / weights, abs=1e-4)


def test_bits_is_the_most_common_width_and_the_others_are_named(tmp_path: Path) -> None:
    source = save_tensors(tmp_path / "m", dense(3), LLAMA)
    quantize(str(source), tmp_path / "out", load_recipe(bits=4, tensor=(r"layers\.[12]=6",)))
    found = settings(tmp_path / "out")
    assert found["bits"] == 6
    assert found["tensors"] == {"model.layers.0.self_attn.q_proj": 4}
    assert list(found["codebooks"]) == ["4", "6"]


def test_modules_to_not_convert_is_exact(coded: Family) -> None:
    assert settings(coded("llama"))["modules_to_not_convert"] == ["lm_head"]
    assert settings(coded("mixtral"))["modules_to_not_convert"] == [
        "lm_head",
        "model.layers.0.block_sparse_moe.gate",
        "model.layers.1.block_sparse_moe.gate",
    ]


def test_modules_to_not_convert_names_a_tied_head_that_no_file_holds(coded: Family) -> None:
    assert settings(coded("qwen3"))["modules_to_not_convert"] == ["lm_head"]


@pytest.mark.parametrize(("option", "named"), [({}, []), ({"exclude": ("embed_tokens",)}, ["lm_head"])])
def test_modules_to_not_convert_names_a_tied_head_unless_it_reads_coded_embeddings(
    family: Family, tmp_path: Path, option: dict[str, tuple[str]], named: list[str]
) -> None:
    quantize(str(family("qwen3")), tmp_path / "out", load_recipe("head", **option))
    assert settings(tmp_path / "out")["modules_to_not_convert"] == named


def test_modules_to_not_convert_names_what_was_excluded(family: Family, tmp_path: Path) -> None:
    quantize(str(family("llama")), tmp_path / "out", load_recipe(exclude=(r"layers\.0\.mlp",)))
    mlp = [f"model.layers.0.mlp.{p}_proj" for p in ("down", "gate", "up")]
    assert settings(tmp_path / "out")["modules_to_not_convert"] == ["lm_head", *mlp]


def test_modules_to_not_convert_names_stacked_experts_that_were_excluded(family: Family, tmp_path: Path) -> None:
    quantize(str(family("gemma4")), tmp_path / "out", load_recipe(exclude=(r"layers\.0\.experts",)))
    named = settings(tmp_path / "out")["modules_to_not_convert"]
    assert [n for n in named if n.startswith("model.language_model.layers.0.experts")]


def test_index_lists_every_tensor_once(coded: Family) -> None:
    index = read_json(coded("gemma4") / "model.safetensors.index.json")
    tensors = read_tensors(coded("gemma4"))
    assert set(index["weight_map"]) == set(tensors)
    assert index["metadata"]["total_size"] == sum(len(t.data) for t in tensors.values())


def test_no_file_holds_more_bytes_than_asked(coded: Family) -> None:
    sizes = [sum(len(t.data) for t in read_file(p).values()) for p in coded("gemma4").glob("*.safetensors")]
    assert len(sizes) > 3
    assert max(sizes) <= 150_000
