"""The GPU time of a token by cause, from a profile, and the minimum time that moving its bytes would take.

Used by offload.py. Kernels are recognized by name. What runs after the last layer's norms is recognized by position:
the head, sampling, embeddings, masks, and the first layer's norm and first product, which run before any kernel that
only layers launch. Causes overlap, because the dense half of a layer runs on a side stream during its experts. Their
sum may therefore exceed the time of a token.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from hlwq_cli.runtime.modules import HLWQExperts

HEAD_AND_REST = "head and the rest"
_CAUSES = {
    "fetch": "fetch", "fetch_ahead": "prefetch (side stream)", "assign_slots": "plan", "assign_prefetch": "plan",
    "moe_gemv_up": "experts' products", "moe_gemv_down": "experts' products",
    "gemv": "dense products", "gemm_small_m": "dense products", "rotate_rows": "dense products",
    "qk_norm_rope_append": "attention", "decode_attention": "attention", "combine_decode_splits": "attention",
    "fused_add_rmsnorm_pre_ffn": "norms and routing", "fused_add_rmsnorm_post_ffn": "norms and routing",
    "route_topk": "norms and routing",
}  # fmt: skip
_LAYERS_BEGIN, _LAYER_ENDS = ("qk_norm_rope_append", "fused_add_rmsnorm_pre_ffn"), "fused_add_rmsnorm_post_ffn"
_OTHERS = "others in layers"
CAUSES = (*dict.fromkeys(_CAUSES.values()), _OTHERS, HEAD_AND_REST)


class Event(NamedTuple):
    """A kernel or copy on the device, with its start and duration in microseconds."""

    name: str
    start: float
    duration: float


def profiled(work: Callable[[], Any]) -> list[Event]:
    """Run `work` under the profiler and return the events of the device, sorted by start."""
    from torch.autograd import DeviceType  # type: ignore[attr-defined]
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        work()
        torch.cuda.synchronize()
    events = [e for e in found.events() if e.device_type == DeviceType.CUDA]
    return sorted((Event(e.name, e.time_range.start, e.time_range.elapsed_us()) for e in events), key=lambda e: e.start)


def by_kernel(events: Sequence[Event]) -> dict[str, float]:
    """Return microseconds by kernel name."""
    times: dict[str, float] = defaultdict(float)
    for event in events:
        times[event.name[:60]] += event.duration
    return times


def by_cause(events: Sequence[Event], layers: int) -> dict[str, float]:
    """Return the microseconds of events by cause, one of CAUSES.

    Args:
        events: sorted by start.
        layers: layers of the model.
    """
    stepped = any(event.name == _LAYER_ENDS for event in events)
    times: dict[str, float] = defaultdict(float)
    ended = layers
    for event in events:
        if ended == layers and event.name in _LAYERS_BEGIN:
            ended = 0
        outside = ended == layers and stepped
        times[HEAD_AND_REST if outside else _CAUSES.get(event.name, _OTHERS if stepped else HEAD_AND_REST)] += (
            event.duration
        )
        ended += event.name == _LAYER_ENDS
    return times


def per_token(long: dict[str, float], short: dict[str, float], tokens: int) -> dict[str, float]:
    """Return the time per token of `tokens` additional tokens, longest first: (long - short) / tokens."""
    found = {name: (time - short.get(name, 0.0)) / tokens for name, time in long.items()}
    return dict(sorted(found.items(), key=lambda kv: -kv[1]))


def bytes_read(model: Any, k: int) -> dict[str, float]:
    """Return the bytes of a quantized model's weights that a token reads, by cause; it uses `k` experts per layer."""
    experts = [(path, m) for path, m in model.named_modules() if isinstance(m, HLWQExperts)]
    layers = [model.get_submodule(re.sub(r"(\.\d+)\..*", r"\1", path)) for path, _ in experts]
    head = model.get_output_embeddings()
    return {
        "experts' products": sum(_expert_bytes(m) * k for _, m in experts),
        "dense products": sum(_bytes(m) for layer in layers for m in layer.modules() if not isinstance(m, HLWQExperts)),
        HEAD_AND_REST: sum(_bytes(m) for m in head.modules()) or _bytes(model.get_input_embeddings()),
    }


def _bytes(module: Any) -> int:
    """Return the bytes of the module's own matrices."""
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return sum(t.numel() * t.element_size() for t in tensors if t.dim() > 1)


def _expert_bytes(module: HLWQExperts) -> float:
    return module.layout.bytes if module.layout is not None else _bytes(module) / module.expert_count


def device_copy_rate(device: torch.device) -> float:
    """Return the bytes per second that a GPU reads plus writes while copying: the best of 4."""
    source = torch.empty(2**30, dtype=torch.uint8, device=device)
    into, best = torch.empty_like(source), float("inf")
    for _ in range(4):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        into.copy_(source)
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) / 1e3)
    return 2 * source.numel() / best


def cause_rows(causes: dict[str, float], least: dict[str, float], layers: int) -> list[str]:
    """Return table rows: cause, microseconds per layer, and the minimum time to move its bytes.

    "head and the rest" is given per token.

    Args:
        causes: microseconds per token.
        least: minimum seconds per token.
        layers: number of layers.
    """
    found = []
    for cause in CAUSES:
        if time := causes.get(cause):
            divisor, unit = (1, " a token") if cause == HEAD_AND_REST else (layers, "")
            bound = f"{1e6 * least[cause] / divisor:.1f}" if cause in least else ""
            found.append(f"{cause} | {time / divisor:.1f}{unit} | {bound}")
    return found
