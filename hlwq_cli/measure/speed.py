"""Tokens per second: prefill and decode, after a warm-up, several times, with the spread."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

PREFILL, DECODE = 512, 128


@dataclass(frozen=True)
class Rate:
    """Tokens per second over several runs."""

    mean: float
    deviation: float
    runs: int


@dataclass(frozen=True)
class Speed:
    """How fast a model answers, one sequence at a time.

    Attributes:
        device: what it ran on.
        prefill: tokens per second of a prompt of 512.
        decode: tokens per second while 128 are generated greedily after a prompt of 8.
        device_peak: bytes of device memory at most, 0 on the CPU.
        host_peak: bytes of host memory the process has held at most, everything included.
    """

    device: str
    prefill: Rate
    decode: Rate
    device_peak: int
    host_peak: int


def measure_speed(model: Any, runs: int = 5) -> Speed:
    """Time a model on fixed tokens; `runs` counted runs after one warm-up of each kind."""
    device = model.device
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(10, vocabulary // 2, (1, PREFILL), generator=generator).to(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with torch.inference_mode():
        prefill = _rate(lambda: model(input_ids=ids, use_cache=True), PREFILL, runs, device)
        prompt = ids[:, :8]
        one = _seconds(lambda: _generate(model, prompt, 1), runs, device)
        many = _seconds(lambda: _generate(model, prompt, DECODE + 1), runs, device)
    first = statistics.mean(one)
    return Speed(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        prefill=prefill,
        decode=_summary([DECODE / (t - first) for t in many]),
        device_peak=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
        host_peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def _generate(model: Any, ids: torch.Tensor, n: int) -> None:
    mask = torch.ones_like(ids)
    model.generate(
        ids, attention_mask=mask, max_new_tokens=n, min_new_tokens=n, do_sample=False,
        temperature=None, top_p=None, top_k=None, pad_token_id=0,
    )  # fmt: skip


def _rate(work: Callable[[], Any], tokens: int, runs: int, device: torch.device) -> Rate:
    return _summary([tokens / t for t in _seconds(work, runs, device)])


def _seconds(work: Callable[[], Any], runs: int, device: torch.device) -> list[float]:
    times = []
    for i in range(runs + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if i:
            times.append(time.perf_counter() - start)
    return times


def _summary(rates: list[float]) -> Rate:
    return Rate(statistics.mean(rates), statistics.stdev(rates) if len(rates) > 1 else 0.0, len(rates))


def _processor() -> str:
    return f"CPU, {torch.get_num_threads()} threads"
