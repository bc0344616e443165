"""What `hlwq bench` refuses, if possible before any work: a message, an exit code, and nothing on stdout."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hlwq_cli.errors import CorruptError
from hlwq_cli.runtime.loading import load_model
from hlwq_cli.samples import resolve_model

from ..run_command import assert_refused, hlwq
from .test_bench import TEXT


@pytest.mark.parametrize("bits", ["1", "9", "4,3,2", "four"])
def test_unsupported_kv_width_is_refused(bits: str) -> None:
    assert_refused(hlwq("bench", "sample", "--ppl", *TEXT, "--kv-bits", bits), 2, bits, "from 2 to 8")


def test_kv_width_without_effect_is_refused() -> None:
    assert_refused(hlwq("bench", "sample", "--ref", "sample", "--cosine", "--kv-bits", "4"), 2, "--kv-bits")


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (("--speed", "--gpu-memory", "much"), "'much' is not a size."),
        (("--speed", "--gpu-memory", "8.6GB", "--device", "cpu"), "--gpu-memory needs a GPU"),
        (
            ("--ref", "sample", "--cosine", "--gpu-memory", "8.6GB"),
            "--gpu-memory has no effect on the requested measures.",
        ),
    ],
)
def test_invalid_gpu_memory_is_refused(asked: tuple[str, ...], sentence: str) -> None:
    assert_refused(hlwq("bench", "sample", *asked), 2, sentence)


def test_model_without_a_full_kv_cache_is_refused(coded: Callable[[str], Path]) -> None:
    ran = hlwq("bench", coded("gemma3"), "--speed", "--kv-bits", "4")
    assert (ran.code, ran.out) == (1, "")
    assert "This model has no full-attention layer" in ran.err


def test_bench_without_a_measure_is_refused() -> None:
    assert_refused(hlwq("bench", "sample"), 2, "No measure is requested.")


@pytest.mark.parametrize("measure", ["--kld", "--cosine"])
def test_a_comparison_without_a_reference_is_refused(measure: str) -> None:
    assert_refused(hlwq("bench", "sample", measure), 2, "--ref")


@pytest.mark.parametrize("gate", ["--max-kld", "--min-top1", "--max-ppl-delta"])
def test_limit_without_its_measure_is_refused(gate: str) -> None:
    ran = hlwq("bench", "sample", "--ppl", gate, "0.5")
    assert ran.code == 2
    assert ran.out == ""
    assert gate in ran.err


def test_a_missing_folder_is_not_found(tmp_path: Path) -> None:
    assert_refused(hlwq("bench", tmp_path / "nothing", "--ppl", *TEXT), 3, "nothing")


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("sample", "nothing"), 3, "There is no folder nothing."),
        (("sample", "--ref", "nothing"), 3, "There is no folder nothing."),
        (("sample", "--device", "blah"), 2, "Unknown device 'blah'"),
        (("sample", "--device", "cuda:99"), 2, "There is no device cuda:99"),
        (("sample", "--device", "cpu,cpu"), 2, "cannot be loaded onto cpu,cpu"),
        (("sample", "--dtype", "int8"), 2, "--dtype int8 is not valid."),
        (("sample", "--chart", "out.jpg"), 2, "--chart writes a PNG file"),
        (("sample", "--chart", "nowhere/out.png"), 3, "There is no folder nowhere for out.png."),
    ],
)
def test_invalid_options_are_refused_before_any_work(
    args: tuple[str, ...], code: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hlwq_cli.measure.runner.load_text", None)  # the text must not be loaded
    assert_refused(hlwq("bench", *args, "--ppl"), code, says)


def test_a_text_shorter_than_a_window_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Too short.")
    ran = hlwq("bench", "sample", "--ppl", "--data", tmp_path / "short.txt")
    assert_refused(ran, 2, "short.txt has ", "fewer than a window of 2048.")


@pytest.mark.parametrize("window", ["-1", "0", "3"])
def test_too_short_window_is_refused(window: str) -> None:
    assert_refused(hlwq("bench", "sample", "--ppl", "--data", "sample", "--window", window), 2, f"A window of {window}")


@pytest.mark.parametrize(("option", "value"), [("--execution", "fast"), ("--protocol", "gpt2"), ("--dtype", "int8")])
def test_an_unknown_choice_is_refused(option: str, value: str) -> None:
    ran = hlwq("bench", "sample", "--ppl", *TEXT, option, value)
    assert ran.code in (1, 2)
    assert value in ran.err
    assert "Unexpected" not in ran.err


def test_plain_checkpoint_is_refused_where_a_coded_one_is_needed() -> None:
    ran = hlwq("bench", "sample", "--ref", "sample", "--cosine")
    assert (ran.code, ran.out) == (3, "")
    assert "is not an HLWQ checkpoint" in ran.err


def test_checkpoint_without_a_tokenizer_is_refused(coded_sample: str, copied: Callable[[Path], Path]) -> None:
    folder = copied(Path(coded_sample))
    for file in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        (folder / file).unlink()
    assert_refused(
        hlwq("bench", folder, "--ppl", *TEXT), 3, "has no usable tokenizer.", "Copy its tokenizer files there."
    )


def test_folder_without_a_model_is_refused_and_the_hub_is_not_blamed(
    coded_sample: str, copied: Callable[[Path], Path]
) -> None:
    folder = copied(Path(coded_sample))
    (folder / "model.safetensors").rename(folder / "model.bin.bak")
    with pytest.raises(CorruptError, match=r"cannot be read: .*model\.safetensors"):
        load_model(str(folder))
    (folder / "config.json").unlink()
    assert_refused(hlwq("bench", folder, "--ppl", *TEXT), 1, "has no config.json of a model that transformers knows.")


@pytest.mark.parametrize("turned", [False, True])
def test_a_reference_of_another_vocabulary_is_refused(
    coded: Callable[[str], Path], turned: bool, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(coded("llama"), tmp_path / "other"))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(resolve_model("sample")) / file, other)
    first, ref = ("sample", str(other)) if turned else (str(other), "sample")
    ran = hlwq("bench", first, "--ref", ref, "--kld", *TEXT)
    assert (ran.code, ran.out) == (2, ""), ran.err
    assert f"{first} has a vocabulary of" in ran.err
    assert "320" in ran.err
    assert "4096" in ran.err
