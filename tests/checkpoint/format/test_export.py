"""Quantized and exported again, each family is the checkpoint it was, within the codec's error."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hlwq_cli.checkpoint import export, open_coded
from tests.cli.run_command import hlwq
from tests.support.builders import FAMILIES, LLAMA, dense, save_tensors
from tests.support.files import opens_with_safetensors, read_json, read_tensors, relative_error

Family = Callable[[str], Path]
TYPES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}

# What 5 bits and blocks of 64 reach on normal weights is 1.675e-3; a few thousand weights scatter round it.
LARGEST_ERROR = 1.80e-3


@pytest.fixture(scope="module")
def exported(coded: Family, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A family's checkpoint, quantized and exported in the type of its source."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("exported") / name
            export(coded(name), made[name], TYPES[FAMILIES[name][1]], max_shard_bytes=200_000)
        return made[name]

    return get


def coded_names(folder: Path) -> set[str]:
    return {s for t in open_coded(folder).manifest.coded for s in t.sources}


def test_export_has_the_names_shapes_and_types_of_the_source(
    family: Family, exported: Family, family_name: str
) -> None:
    source, back = read_tensors(family(family_name)), read_tensors(exported(family_name))
    assert {n: (t.shape, t.dtype) for n, t in back.items()} == {n: (t.shape, t.dtype) for n, t in source.items()}


def test_kept_tensors_come_back_bit_for_bit(family: Family, coded: Family, exported: Family, family_name: str) -> None:
    source, back = read_tensors(family(family_name)), read_tensors(exported(family_name))
    between = read_tensors(coded(family_name))
    kept = set(source) - coded_names(coded(family_name))
    assert kept
    assert {n for n in kept if source[n] != between[n]} == set()
    assert {n for n in kept if source[n] != back[n]} == set()


def test_coded_tensors_come_back_within_the_error_of_the_codec(
    family: Family, coded: Family, exported: Family, family_name: str
) -> None:
    source, back = read_tensors(family(family_name)), read_tensors(exported(family_name))
    errors = {n: relative_error(back[n].values, source[n].values) for n in coded_names(coded(family_name))}
    assert {n: e for n, e in errors.items() if not 1e-3 < e < LARGEST_ERROR} == {}


def test_manifest_states_the_error_of_every_coded_tensor(family: Family, coded: Family, family_name: str) -> None:
    source, checkpoint = read_tensors(family(family_name)), open_coded(coded(family_name))
    for record in checkpoint.manifest.coded:
        true = torch.cat([source[n].values.flatten(0, -2) for n in record.sources])
        found = checkpoint.decode_rows(record, 0, len(true))
        assert relative_error(found, true) == pytest.approx(record.nmse, rel=1e-3), record.name
    checkpoint.close()


def test_export_restores_the_config(family: Family, coded: Family, exported: Family, family_name: str) -> None:
    source = read_json(family(family_name) / "config.json")
    assert read_json(exported(family_name) / "config.json") == source
    assert {k: v for k, v in read_json(coded(family_name) / "config.json").items() if k in source} == source


def test_safetensors_itself_reads_the_coded_and_the_exported_files(
    coded: Family, exported: Family, family_name: str
) -> None:
    assert opens_with_safetensors(coded(family_name))
    assert opens_with_safetensors(exported(family_name))


@pytest.mark.filterwarnings("default")
def test_transformers_loads_the_export_without_missing_or_unexpected_tensors(
    exported: Family, family_name: str
) -> None:
    import transformers

    folder = exported(family_name)
    model_class = getattr(transformers, read_json(folder / "config.json")["architectures"][0])
    model, info = model_class.from_pretrained(folder, output_loading_info=True, dtype="auto")
    assert {k: v for k, v in info.items() if v} == {}
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("is_there", [False, True], ids=["new folder", "empty folder"])
def test_export_that_overflows_names_the_tensor_and_leaves_nothing(tmp_path: Path, is_there: bool) -> None:
    large = {f"model.layers.{i}.self_attn.q_proj.weight": torch.full((128, 128), 9e4) for i in (1, 2)}
    source = save_tensors(tmp_path / "m", dense(3, dtype=torch.float32) | large, LLAMA)
    assert hlwq("quantize", source, tmp_path / "coded", "--max-shard-size", "10KB").code == 0
    plain = tmp_path / "plain"
    if is_there:
        plain.mkdir()
    ran = hlwq("export", tmp_path / "coded", plain, "--to", "f16")
    assert ran.code == 1
    assert ran.out == ""
    says = f"Error: {min(large)} has weights beyond 65504, the largest F16 (2 tensors in all); nothing was written."
    assert ran.err.splitlines()[-2:] == [says, "Use --to bf16 or --to f32."]
    assert (plain.exists(), [*plain.glob("*")]) == (is_there, [])
    assert hlwq("export", tmp_path / "coded", plain, "--to", "bf16").code == 0
