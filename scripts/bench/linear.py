"""Speed of products with quantized weights on a CUDA device, compared with bf16 in the same run.

    python scripts/bench/linear.py [one] [few] [experts] [prefill]

Each figure is the median over replays of one CUDA graph. The graph holds many calls, each on its own weights; together
the weights are far larger than the L2 cache. So weights come from memory, and no launch waits for the host. Both sides
are timed this way. "of copy" is the fraction of a device-to-device copy's bandwidth at which the codes were read.
Weights are random: the figures say something about speed, not about quality.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial

import torch

from hlwq_cli.codec import Scheme
from hlwq_kernels import encode_rows
from hlwq_kernels.codes import QuantizedWeight
from hlwq_kernels.linear import coded_linear
from hlwq_kernels.moe import coded_experts
from scripts.bench.codec_gpu import copy_bandwidth
from scripts.bench.experts_bf16 import fastest, launch

SHAPES = [(262144, 2816), (16384, 2816), (8192, 2816), (4096, 2816), (2816, 8192), (2112, 2816), (2816, 2112)]
linear = torch.nn.functional.linear
COLD_BYTES = 3 * 10**8
MAX_COPIES = 48
Call = Callable[[], object]


def seconds(calls: Sequence[Call], runs: int = 15) -> float:
    """Return the median seconds of one call."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(runs + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / len(calls))
    return statistics.median(times[2:])


def encode_weight(weight: torch.Tensor, bits: int) -> QuantizedWeight:
    scheme = Scheme(bits, search=False)
    rows = encode_rows(weight.flatten(0, -2), scheme.tables, 64, "log8", search=False)
    lead = weight.shape[:-1]
    return QuantizedWeight(
        rows.codes.view(*lead, -1),
        rows.scales.view(*lead, -1),
        None if rows.base is None else rows.base.view(lead),
        torch.from_numpy(scheme.tables.centroids).cuda(),
        64,
    )


def nbytes(weight: QuantizedWeight) -> int:
    return sum(t.nbytes for t in weight[:3] if isinstance(t, torch.Tensor))


def random_weight(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16) * 0.02


def copies(weight: QuantizedWeight, count: int) -> list[QuantizedWeight]:
    return [weight._replace(codes=weight.codes.clone(), scales=weight.scales.clone()) for _ in range(count)]


def dense_lines(tokens: int, bandwidth: float, all_bits: tuple[int, ...]) -> None:
    print(f"\n{tokens} token{'s' if tokens > 1 else ''}\n")
    print("| rows x columns | bf16, us | bits | us | times bf16 | of copy |\n|---|---|---|---|---|---|")
    for rows, columns in SHAPES:
        weight, x = random_weight(rows, columns), random_weight(tokens, columns)
        dense = [weight] + [weight.clone() for _ in range(min(MAX_COPIES, COLD_BYTES // weight.nbytes))]
        bf16_time = seconds([partial(linear, x, w) for w in dense])
        del dense
        for bits in all_bits:
            one = encode_weight(weight, bits)
            many = copies(one, 1 + min(MAX_COPIES, COLD_BYTES // nbytes(one)))
            coded_time = seconds([partial(coded_linear, x, *w) for w in many])
            cells = f"{bf16_time * 1e6:.1f} | {bits} | {coded_time * 1e6:.1f} | {bf16_time / coded_time:.2f}"
            print(f"| {rows} x {columns} | {cells} | {nbytes(one) / coded_time / bandwidth:.0%} |", flush=True)


def gate(rows: torch.Tensor) -> torch.Tensor:
    a, b = rows.chunk(2, dim=-1)
    return torch.nn.functional.gelu(a, approximate="tanh") * b


def batched(
    x: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor, up: torch.Tensor, down: torch.Tensor
) -> object:
    """Run one token as transformers' batched_mm does, without its copy of repeated tokens."""
    e = topk_ids[0]
    inner = gate(torch.matmul(up[e], x[0]))
    return (torch.bmm(down[e], inner[..., None])[..., 0] * topk_weights[0, :, None]).sum(0)


def grouped(
    x: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor, up: torch.Tensor, down: torch.Tensor
) -> object:
    """Run any number of tokens as transformers' grouped_mm does."""
    tokens, k = topk_ids.shape
    flat = topk_ids.flatten()
    order = flat.argsort(stable=True)
    ends = torch.histc(flat.float(), bins=len(up), min=0, max=len(up) - 1).cumsum(0).to(torch.int32)
    inner = gate(torch.nn.functional.grouped_mm(x[order // k], up.transpose(-2, -1), offs=ends))
    out = torch.nn.functional.grouped_mm(inner, down.transpose(-2, -1), offs=ends) * topk_weights.flatten()[order, None]
    back = torch.empty_like(out)
    back[order] = out
    return back.view(tokens, k, -1).sum(1)


def bf16_kernel_seconds(
    x: torch.Tensor,
    topk_weights: torch.Tensor,
    all_topk_ids: list[torch.Tensor],
    layers: list[tuple[torch.Tensor, torch.Tensor]],
) -> float:
    """Return the seconds of our kernels' loop order fed bf16, in its fastest layouts; also check the result."""
    hidden = random_weight(8, layers[0][0].shape[1]).float()
    tuned = [
        fastest(kind, given, [layer[kind - 1] for layer in layers], all_topk_ids, topk_weights, seconds)
        for kind, given in ((1, x), (2, hidden))
    ]
    calls = []
    for i, topk_ids in enumerate(all_topk_ids):
        up, down = layers[i % len(layers)]
        first, inner = launch(1, tuned[0], x, up, topk_ids, topk_weights)
        second, y = launch(2, tuned[1], inner, down, topk_ids, topk_weights)
        calls += [first, second]
    found = seconds([lambda pair=pair: (pair[0](), pair[1]()) for pair in zip(calls[::2], calls[1::2], strict=True)])
    torch.testing.assert_close(
        y[0], batched(x, topk_weights.bfloat16(), topk_ids, up, down), rtol=0.05, atol=0.05 * y.abs().max().item()
    )
    print(f"layouts: {tuned[0]}, {tuned[1]}\n")
    return found


def expert_lines(bandwidth: float, tokens: int, layers: int) -> None:
    print(f"\nA layer of 128 experts, 2 x 704 x 2816 and 2816 x 704, top-8, {tokens} tokens\n")
    weights = [(random_weight(128, 1408, 2816), random_weight(128, 2816, 704)) for _ in range(layers)]
    x, topk_weights = random_weight(tokens, 2816), torch.rand(tokens, 8, device="cuda")
    all_topk_ids = [torch.stack([torch.randperm(128)[:8] for _ in range(tokens)]).cuda() for _ in range(4 * layers)]
    pairs = [(c, *weights[i % layers]) for i, c in enumerate(all_topk_ids)]
    rounded = topk_weights.bfloat16()
    bf16_times = {"grouped_mm, bf16": seconds([partial(grouped, x, rounded, *p) for p in pairs])}
    if tokens == 1:
        bf16_times["batched_mm, bf16"] = seconds([partial(batched, x, rounded, *p) for p in pairs])
        bf16_times["our GEMV kernels, fed bf16"] = bf16_kernel_seconds(x, topk_weights, all_topk_ids, weights)
    best = min(bf16_times.values())
    fraction = min(1.0, 8 * tokens / 128)
    print("| kernel | us | times the best in bf16 | read bandwidth, of copy |\n|---|---|---|---|")
    for name, time in bf16_times.items():
        line(name, time, best, fraction * sum(w.nbytes for w in weights[0]), bandwidth)
    for bits in (4, 5, 8) if tokens <= 8 else (5,):
        both = [(encode_weight(up, bits), encode_weight(down, bits)) for up, down in weights]
        calls = [
            partial(coded_experts, x, c, topk_weights, *both[i % layers], gate, "gelu_pytorch_tanh")
            for i, c in enumerate(all_topk_ids)
        ]
        time = seconds(calls) if tokens <= 64 else eager_seconds(calls)
        line(f"codes, {bits} bits", time, best, fraction * sum(nbytes(w) for w in both[0]), bandwidth)


def line(name: str, time: float, best: float, read: float, bandwidth: float) -> None:
    print(f"| {name} | {time * 1e6:.1f} | {best / time:.2f} | {read / time / bandwidth:.0%} |", flush=True)


def eager_seconds(calls: Sequence[Call], runs: int = 7) -> float:
    """Return the median seconds of one call that synchronizes with the host, which a CUDA graph cannot capture."""
    times = []
    for i in range(runs + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        calls[i % len(calls)]()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times[2:])


def prefill_lines() -> None:
    print("\nPrefill\n\n| rows x columns | tokens | bf16, us | 5 bits, us | overhead |\n|---|---|---|---|---|")
    for rows, columns in ((8192, 2816), (2816, 8192), (4096, 2816), (2112, 2816)):
        weight = random_weight(rows, columns)
        one = encode_weight(weight, 5)
        for tokens in (17, 32, 64, 128, 512, 2048, 8192):
            x = random_weight(tokens, columns)
            bf16_time = seconds([partial(linear, x, weight)] * 4)
            coded_time = seconds([partial(coded_linear, x, *one)] * 4)
            cells = f"{bf16_time * 1e6:.1f} | {coded_time * 1e6:.1f} | {coded_time / bf16_time - 1:+.0%}"
            print(f"| {rows} x {columns} | {tokens} | {cells} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help="one, few, experts, prefill; default: all")
    args = parser.parse_args()
    bandwidth = copy_bandwidth(9)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, copy {bandwidth / 1e9:.0f} GB/s")
    sections: dict[str, Call] = {
        "one": lambda: dense_lines(1, bandwidth, (4, 5, 8)),
        "few": lambda: (dense_lines(8, bandwidth, (5,)), dense_lines(16, bandwidth, (5,))),
        "experts": lambda: [expert_lines(bandwidth, tokens, 2) for tokens in (1, 4, 4096)],
        "prefill": prefill_lines,
    }
    for name in args.sections or sections:
        sections[name]()


if __name__ == "__main__":
    with torch.inference_mode():
        main()
