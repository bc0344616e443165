"""One case of scripts/bench/offload.py, measured in its own process."""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from scripts.bench.synthetic_routing import override_routing, synthetic_predictions, synthetic_topk_ids
from scripts.bench.time_by_cause import by_cause, by_kernel, bytes_read, per_token, profiled

PROMPT_TOKENS, PREFILL_TOKENS = 8, 512
ROUTINGS = ("own", "uniform", "sticky")
Figures = dict[str, Any]


def limit_prefetch(groups: Iterable[Any], experts: int) -> None:
    """Limit the experts prefetched per layer, of a model that has not run yet."""
    from hlwq_kernels.offload import OffloadedLayer

    for slots in groups:
        slots.prefetch_list = slots.prefetch_list.empty(experts, slots.device)
    if not experts:
        setattr(OffloadedLayer, "prefetch", lambda *args: None)  # noqa: B010


def seconds_of(work: Callable[[], Any], runs: int, device: torch.device) -> list[float]:
    """Return the seconds of each run after one warm-up run."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return times[1:]


class Case:
    """One case, measured in this process; each figure is printed as a line of JSON as soon as it is known."""

    def __init__(self, args: argparse.Namespace, case: str) -> None:
        from hlwq_cli.measure.expert_traffic import expert_traffic
        from hlwq_cli.runtime.decode import Generation
        from hlwq_cli.runtime.loading import load_model
        from hlwq_cli.runtime.modules import HLWQExperts
        from hlwq_cli.runtime.offload import ExpertBudget, expert_cache_of, experts_per_token, host_memory_free

        self.args, self.expert_traffic, self.new_generation = args, expert_traffic, Generation
        self.host_memory_free, self.free_before = host_memory_free, host_memory_free()
        start = time.perf_counter()
        budget = {
            "slots": ExpertBudget.parse(args.slots, args.gpu_memory),
            "none": ExpertBudget(slots=1),
            "resident": None,
        }[case]
        self.model = load_model(args.folder, device=args.device, execution="coded", expert_budget=budget)
        self.device: torch.device = self.model.device
        self.cache = expert_cache_of(self.model)
        limit_prefetch(() if self.cache is None else self.cache.groups, args.ahead)
        self.layers = [m for m in self.model.modules() if isinstance(m, HLWQExperts)]
        self.top_k = experts_per_token(self.model.config)
        record("load_seconds", time.perf_counter() - start)
        random, vocabulary = torch.Generator().manual_seed(0), self.model.config.get_text_config().vocab_size
        self.ids = torch.randint(10, vocabulary // 2, (1, PREFILL_TOKENS), generator=random).to(self.device)

    def run(self) -> None:
        """Decode with each routing, then measure prefill and memory."""
        record("layers", len(self.layers))
        record("bytes_read", bytes_read(self.model, self.top_k))
        if self.cache is not None:
            record("slots", self.cache.slots)
            record("placed", self.cache.line())
            record("device_plans", self.cache.groups[0].device_assigns)
        for routing in ROUTINGS:
            self.decode(routing)
        generation = self.new_generation(self.model)
        with torch.inference_mode():
            prefill = self.seconds(generation, PREFILL_TOKENS, 1)
        record("prefill_tokens_a_second", PREFILL_TOKENS / statistics.mean(prefill))
        self.record_memory()

    def record_memory(self) -> None:
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            record("device_bytes_used", total - free)
            record("device_bytes_allocated_peak", torch.cuda.max_memory_allocated(self.device))
            record("device_bytes_reserved_peak", torch.cuda.max_memory_reserved(self.device))
        record("host_peak_rss", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        record("host_memory_taken", self.free_before - self.host_memory_free())

    def answer(self, generation: Any, prompt: int, tokens: int) -> None:
        """Decode exactly `tokens` greedy tokens after the first `prompt` tokens."""
        ids = self.ids[:, :prompt]
        generation.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            eos_token_id=None,
            pad_token_id=0,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
        )

    def seconds(self, generation: Any, prompt: int, tokens: int) -> list[float]:
        return seconds_of(lambda: self.answer(generation, prompt, tokens), self.args.runs, self.device)

    def decode(self, routing: str) -> None:
        """Measure decoding with a routing: speed, traffic and, on a GPU, a profile."""
        table = predictions = None
        if routing != "own":
            experts = self.layers[0].expert_count
            table = synthetic_topk_ids(routing, len(self.layers), experts, self.top_k)
            predictions = synthetic_predictions(table, experts, self.args.recall).to(self.device)
            table = table.to(self.device)
        generation = self.new_generation(self.model)  # CUDA graphs keep the routing that they were captured with
        with override_routing(self.layers, table, predictions), torch.inference_mode():
            record(routing, self.decode_figures(generation))
            if routing != "own" and self.device.type == "cuda":
                self.record_profile(routing, generation)

    def decode_figures(self, generation: Any) -> Figures:
        first = statistics.mean(self.seconds(generation, PROMPT_TOKENS, 1))
        traffic = self.traffic()
        self.seconds(generation, PROMPT_TOKENS, 1)
        traffic += self.traffic()
        whole = self.seconds(generation, PROMPT_TOKENS, self.args.tokens + 1)
        rates = [self.args.tokens / (t - first) for t in whole]
        figures: Figures = {"tokens_a_second": statistics.mean(rates), "decoding": generation.decoding}
        figures["deviation"] = statistics.stdev(rates) if len(rates) > 1 else 0.0
        if generation.decoder is not None and generation.decoder.graph_error:
            figures["not_captured"] = generation.decoder.graph_error
        if self.cache is not None:
            traffic += self.traffic()
            tokens = (self.args.runs + 1) * self.args.tokens
            figures |= asdict(self.expert_traffic(self.cache, traffic, tokens))
        return figures

    def traffic(self) -> list[Any]:
        return [] if self.cache is None else [self.cache.traffic()]

    def record_profile(self, routing: str, generation: Any) -> None:
        """Record the device's time of 16 tokens: a profile of 17 minus one of 1."""
        try:
            long, short = (profiled(partial(self.answer, generation, PROMPT_TOKENS, n)) for n in (17, 1))
            kernels = per_token(by_kernel(long), by_kernel(short), 16)
            record(f"{routing}_profile", dict(list(kernels.items())[:12]))
            layers = len(self.layers)
            record(f"{routing}_causes", per_token(by_cause(long, layers), by_cause(short, layers), 16))
        except Exception as error:
            record(f"{routing}_profile", f"no profile: {error}")


def record(key: str, value: Any) -> None:
    """Print a figure for the parent process."""
    print(json.dumps({key: value}), flush=True)
