"""The speed of a model with experts outside its device states the bytes fetched per token."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hlwq_cli.measure.expert_traffic import ExpertTraffic, expert_traffic
from hlwq_cli.measure.report import BenchReport, Measured
from hlwq_cli.measure.speed import measure_speed
from hlwq_cli.runtime.loading import load_model
from hlwq_cli.runtime.offload import ExpertBudget, Traffic, expert_cache_of
from hlwq_cli.ui.bench_tables import show_bench
from hlwq_cli.ui.sink import Format, Sink

Family = Callable[[str], Path]


@pytest.fixture(scope="module")
def measured(coded: Family) -> Measured:
    model = load_model(str(coded("qwen3_moe")), device="cpu", expert_budget=ExpertBudget(2))
    return Measured("out", 1000, 5.1, speed=measure_speed(model, runs=1))


def test_decoded_tokens_alone_are_counted(measured: Measured) -> None:
    assert measured.speed is not None
    found = measured.speed.experts
    assert found is not None
    assert (found.slots, found.experts, found.layers, found.tier) == (2, 4, 2, "host")
    assert 0 < found.hit_rate < 1
    record = found.outside_bytes / 8
    assert found.token_bytes == pytest.approx((1 - found.hit_rate) * 4 * record, rel=0.02)
    assert (found.copy_rate, found.copy_bound) == (0.0, None)


def test_nothing_is_fetched_if_all_experts_have_slots(coded: Family) -> None:
    model = load_model(str(coded("qwen3_moe")), device="cpu", expert_budget=ExpertBudget(4))
    cache = expert_cache_of(model)
    assert cache is not None
    found = expert_traffic(cache, (Traffic(), Traffic(80, 8, 800), Traffic(960, 8, 800)), 100)
    assert (found.hit_rate, found.token_bytes, found.ahead_bytes) == (1.0, 0.0, 0.0)


def test_prefetched_bytes_are_counted_apart_and_prompts_are_not_counted(coded: Family) -> None:
    cache = expert_cache_of(load_model(str(coded("qwen3_moe")), device="cpu", expert_budget=ExpertBudget(2)))
    assert cache is not None
    fetched = Traffic(), Traffic(80, 8, 800, 0, 300), Traffic(960, 48, 4800, 0, 1600)
    found = expert_traffic(cache, fetched, 100)
    assert (found.token_bytes, found.ahead_bytes) == (32.0, 10.0)


def test_json_and_human_output_show_expert_traffic(measured: Measured, capsys: pytest.CaptureFixture[str]) -> None:
    report = BenchReport(None, "", None, (measured,))
    show_bench(Sink(Format.human), report, ())
    shown = capsys.readouterr().out
    assert "out: 2 of 4 experts in each of 2 layers on the device, all (" in shown
    assert "fetched per decoded token." in shown
    show_bench(Sink(Format.json), report, ())
    experts = json.loads(capsys.readouterr().out)["report"]["measured"][0]["speed"]["experts"]
    assert set(experts) == set(ExpertTraffic.__dataclass_fields__)


def test_copy_bound_is_stated_if_there_is_one(capsys: pytest.CaptureFixture[str], measured: Measured) -> None:
    from dataclasses import replace

    assert measured.speed is not None
    traffic = ExpertTraffic(34, 128, 30, 14_663_024_640, "host", 0.266, 673e6, 110e6, 54.6e9, 69.7)
    other = replace(measured, speed=replace(measured.speed, experts=traffic))
    show_bench(Sink(Format.human), BenchReport(None, "", None, (other,)), ())
    shown = capsys.readouterr().out
    assert "hit rate 0.266, 673.00 MB fetched per decoded token, and 110.00 MB prefetched; the copies" in shown
    assert "the copies alone, at 54.6 GB/s, limit it to 70 tokens per second." in shown
