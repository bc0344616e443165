"""Every file that is no weight comes along byte for byte, there and back; pickles and git's own files do not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hlwq_cli.checkpoint import export, load_recipe, quantize
from tests.runtime.kinds import t5
from tests.support.builders import CARD, NOT_BROUGHT, SIDECAR_FILES, add_sidecar_files, tiny_llama

Family = Callable[[str], Path]


@pytest.mark.parametrize("name", [*SIDECAR_FILES, "generation_config.json"])
def test_sidecar_files_are_copied_byte_for_byte(family: Family, coded: Family, tmp_path: Path, name: str) -> None:
    export(coded("qwen3"), tmp_path / "plain")
    source = (family("qwen3") / name).read_bytes()
    assert (coded("qwen3") / name).read_bytes() == source
    assert (tmp_path / "plain" / name).read_bytes() == source


@pytest.mark.parametrize("name", NOT_BROUGHT)
def test_pickles_and_hidden_files_are_not_copied(coded: Family, name: str) -> None:
    assert not (coded("qwen3") / name).exists()


def test_source_card_is_kept_with_the_new_one_and_export_restores_it(coded: Family, tmp_path: Path) -> None:
    export(coded("qwen3"), tmp_path / "plain")
    assert (coded("qwen3") / "README.source.md").read_bytes() == CARD.encode()
    assert (tmp_path / "plain" / "README.md").read_bytes() == CARD.encode()
    assert not (tmp_path / "plain" / "README.source.md").exists()


def test_new_card_names_licence_relation_and_tags(coded: Family) -> None:
    card = (coded("qwen3") / "README.md").read_text()
    for line in ("license: mit", "pipeline_tag: text-generation", "library_name: transformers", "- hlwq"):
        assert f"\n{line}\n" in card
    for reference in ("2411.17525", "2603.29078"):
        assert reference in card


def test_base_model_is_named_with_its_relation(tmp_path: Path) -> None:
    quantize(str(tiny_llama(tmp_path / "m")), tmp_path / "out", load_recipe(), base_model="owner/origin")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "\nbase_model: owner/origin\nbase_model_relation: quantized\n" in card


def test_export_leaves_no_trace_of_the_coding(coded: Family, tmp_path: Path) -> None:
    export(coded("qwen3"), tmp_path / "plain")
    names = {p.name for p in (tmp_path / "plain").iterdir()}
    assert not [n for n in names if "hlwq" in n]
    assert "quantization_config" not in (tmp_path / "plain" / "config.json").read_text()


def test_an_earlier_result_inside_the_source_folder_is_not_copied(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "m")
    add_sidecar_files(model)
    quantize(str(model), model / "q5", load_recipe(bits=5))
    quantize(str(model), model / "q4", load_recipe(bits=4))
    assert not (model / "q4" / "q5").exists()


def test_new_card_loads_an_encoder_decoder_by_its_own_auto_class(tmp_path: Path) -> None:
    quantize(str(t5(tmp_path / "m")), tmp_path / "out", load_recipe())
    card = (tmp_path / "out" / "README.md").read_text()
    assert "\npipeline_tag: text2text-generation\n" in card
    assert "    from transformers import AutoModelForSeq2SeqLM\n" in card
    assert "    model = AutoModelForSeq2SeqLM.from_pretrained(" in card
