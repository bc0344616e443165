"""Speed is measured with the loop of `HLWQModel` and states it; models measured in turn are not in memory together."""

import gc
import math
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hlwq_cli.measure import Request, bench, runner
from hlwq_cli.measure.speed import DECODE, PREFILL, measure_speed, release_memory
from hlwq_cli.runtime.decode import Decoder, Generation
from tests.runtime import kinds

Family = Callable[[str], Path]


def test_every_run_reads_the_prompt_and_decodes_its_tokens(coded: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    model = runner.load_model(str(coded("llama")), device="cpu")
    lengths: list[tuple[int, int]] = []
    generate = Generation.generate

    def watch(self: Generation, **options: Any) -> torch.Tensor:
        out = generate(self, **options)
        prompt = options["input_ids"].shape[1]
        lengths.append((prompt, out.shape[1] - prompt))
        return out

    monkeypatch.setattr(Generation, "generate", watch)
    speed = measure_speed(model, runs=2)
    assert lengths == [(PREFILL, 1)] * 3 + [(8, 1)] * 3 + [(8, DECODE + 1)] * 3
    assert (speed.decoding, speed.not_captured, speed.device_peak) == ("transformers", "", 0)
    for rate in (speed.prefill, speed.decode):
        assert rate.runs == 2
        assert 1 < rate.mean < math.inf
        assert rate.deviation >= 0


def test_speed_states_that_the_static_loop_decoded(coded: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    start = Generation.__init__

    def static(self: Generation, model: Any) -> None:
        start(self, model)
        self.decoder = Decoder(model)

    monkeypatch.setattr(Generation, "__init__", static)
    assert measure_speed(runner.load_model(str(coded("llama")), device="cpu"), runs=1).decoding == "eager"


def test_a_rate_is_tokens_over_time(coded: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {1: 0.01, DECODE + 1: 0.01 + 0.1}

    def pause(self: Generation, **options: Any) -> None:
        time.sleep(seconds[options["max_new_tokens"]])

    monkeypatch.setattr(Generation, "generate", pause)
    speed = measure_speed(runner.load_model(str(coded("llama")), device="cpu"), runs=2)
    assert speed.decode.mean == pytest.approx(DECODE / 0.1, rel=0.1)
    assert speed.prefill.mean == pytest.approx(PREFILL / 0.01, rel=0.3)


@pytest.mark.parametrize("kld", [False, True])
def test_model_is_freed_before_the_next_is_loaded(kld: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models of 51 GB would not fit in memory; only --kld needs the reference together with each model."""
    loaded: list[Any] = []
    alive: list[int] = []
    load = runner.load_model

    def watch(path: str, **options: Any) -> Any:
        alive.append(sum(model() is not None for model in loaded))
        model = load(path, **options)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(runner, "load_model", watch)
    monkeypatch.setattr(runner, "measure_speed", lambda model: measure_speed(model, runs=1))
    request = Request(speed=True, kld=kld, data="sample", window=32, windows=1, device="cpu")
    monkeypatch.setattr("hlwq_cli.measure.speed.DECODE", 4)
    small = str(kinds.llama(tmp_path))
    bench([small, small], request, ref=small)
    assert alive == ([0, 1, 1] if kld else [0, 0, 0])


def test_host_memory_peak_is_counted_since_the_last_release() -> None:
    import resource

    block = bytearray(400_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    del block
    gc.collect()
    release_memory()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before - 300_000
