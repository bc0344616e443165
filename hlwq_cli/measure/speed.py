"""Prefill and decode speed with the loop of `HLWQModel`: several runs after a warm-up, with their spread."""

from __future__ import annotations

import gc
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import UsageError
from ..runtime.decode import Decoding, Generation
from ..runtime.loading import context_of, text_config
from ..runtime.offload import Traffic, expert_cache_of
from .expert_traffic import ExpertTraffic, expert_traffic

PREFILL, PROMPT, DECODE = 512, 8, 128


@dataclass(frozen=True)
class Rate:
    """Tokens per second over several runs."""

    mean: float
    deviation: float
    runs: int


@dataclass(frozen=True)
class Speed:
    """Speed and memory of a model, for one sequence at a time.

    Attributes:
        device: name of the device.
        decoding: how tokens were decoded: by replaying a CUDA `graph`, with `eager` steps of the same loop, or by the
            loop of `transformers`.
        not_captured: why a GPU did not replay a graph; empty if it did, or on a CPU.
        prefill: tokens per second of a prompt of 512 tokens, up to the first new token.
        decode: tokens per second of 128 tokens, generated greedily after a prompt of 8.
        prompt_tokens: tokens of the long prompt; fewer than 512 where the context is shorter.
        new_tokens: tokens that are decoded; fewer than 128 where the context is shorter.
        device_peak: peak bytes of device memory since loading began; 0 on the CPU.
        host_peak: peak bytes of host memory since loading began, mapped files included.
        experts: traffic of experts outside the GPU during decoding, if there are any.
    """

    device: str
    decoding: Decoding
    not_captured: str
    prefill: Rate
    decode: Rate
    device_peak: int
    host_peak: int
    experts: ExpertTraffic | None = None
    prompt_tokens: int = PREFILL
    new_tokens: int = DECODE

    @property
    def is_cut(self) -> bool:
        """Whether the context of the model was too short for the usual numbers of tokens."""
        return (self.prompt_tokens, self.new_tokens) != (PREFILL, DECODE)


def measure_speed(model: Any, runs: int = 5) -> Speed:
    """Time a model on fixed random tokens; each kind of run is repeated `runs` times after one warm-up."""
    device: torch.device = model.device
    generation = Generation(model)
    length, new = _lengths(model)
    ids = _random_prompt(model, length).to(device)
    with torch.inference_mode():
        prefill = _seconds(lambda: _answer(generation, ids, 1), runs, device)
        fetched = [_traffic(model)]
        first = _seconds(lambda: _answer(generation, ids[:, :PROMPT], 1), runs, device)
        fetched.append(_traffic(model))
        whole = _seconds(lambda: _answer(generation, ids[:, :PROMPT], new + 1), runs, device)
        fetched.append(_traffic(model))
    cache = expert_cache_of(model)
    mean_first = statistics.mean(first)
    return Speed(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        decoding=generation.decoding,
        not_captured=_why_not_captured(generation, device),
        prefill=_summary([length / t for t in prefill]),
        decode=_summary([new / (t - mean_first) for t in whole]),
        device_peak=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
        host_peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        experts=None if cache is None else expert_traffic(cache, fetched, (runs + 1) * new),
        prompt_tokens=length,
        new_tokens=new,
    )


def _lengths(model: Any) -> tuple[int, int]:
    """Return the tokens of the long prompt and of the answer, as far as the model has positions for them."""
    context = context_of(model)
    room = context.tokens if context is not None and context.is_hard else PREFILL + 1
    if room < 2 * PROMPT:
        raise UsageError(f"The context of this model is {room}, too short for --speed.", "Omit --speed.")
    return min(PREFILL, room - 1), min(DECODE, room - PROMPT - 1)


def _random_prompt(model: Any, length: int) -> torch.Tensor:
    vocabulary = text_config(model.config).vocab_size
    return torch.randint(10, vocabulary // 2, (1, length), generator=torch.Generator().manual_seed(0))


def _traffic(model: Any) -> Traffic:
    cache = expert_cache_of(model)
    return Traffic() if cache is None else cache.traffic()


def release_memory() -> None:
    """Free the memory of models that are no longer referenced, and reset the peaks of device and host memory."""
    gc.collect()
    if torch.cuda.is_initialized():  # torch raises if CUDA is not initialized
        torch.cuda.empty_cache()
        for device in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _answer(generation: Generation, ids: torch.Tensor, tokens: int) -> None:
    """Generate `tokens` tokens greedily, without a stop token."""
    generation.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        eos_token_id=None,
        pad_token_id=0,
        do_sample=False,
        num_beams=1,
        temperature=None,
        top_p=None,
        top_k=None,
    )


def _why_not_captured(generation: Generation, device: torch.device) -> str:
    if device.type != "cuda" or generation.decoding == "graph":
        return ""
    decoder = generation.decoder
    return generation.fallback_reason if decoder is None else decoder.graph_error or ""


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
