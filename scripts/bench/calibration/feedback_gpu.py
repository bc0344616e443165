"""Speed of encoding with error feedback: the experts of one layer, step by step, and the loss against the CPU.

    python scripts/bench/calibration/feedback_gpu.py [--experts 128] [--rows-per-warp 1 2] [--bits 4]

Times moments, their factor, the whole encoder, and of it the products that spread errors. A step runs three times; the
figure is the median. Inputs are random with correlated channels of different size: the figures say something about
speed and about agreement with the CPU, not about the quality of a model. Without a GPU a small layer
runs on the CPU.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from hlwq_cli.codec import FeedbackFactor, FeedbackRows, Moments, Scheme, feedback_factor, shrink
from hlwq_kernels.encode import encode_feedback

SHAPES = {"gate_up": (1408, 2816), "down": (2816, 704)}
SMALL_SHAPES = {"gate_up": (96, 192), "down": (192, 96)}
TOKENS = 4096
LAYERS = 30


def seconds(run: Callable[[], object], device: torch.device, runs: int = 3) -> float:
    """Return the median seconds of `run`, after a first call that is not timed."""
    times = []
    for _ in range(runs + 1):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def random_moments(experts: int, tokens: int, columns: int, device: torch.device) -> Moments:
    """Return the moments of correlated inputs, made expert by expert."""
    generator = torch.Generator(device).manual_seed(columns)
    h = torch.empty(experts, columns, columns, device=device)
    for e in range(experts):
        mixing = torch.randn(columns // 8, columns, device=device, generator=generator)
        x = torch.randn(tokens, columns // 8, device=device, generator=generator) @ mixing
        x += torch.randn(tokens, columns, device=device, generator=generator)
        x *= torch.exp(0.5 * torch.randn(columns, device=device, generator=generator))
        h[e] = x.T @ x
    return Moments(h, torch.full((experts,), float(tokens)))


def spread_errors(weight: torch.Tensor, factor: FeedbackFactor, block_size: int = 64, panel: int = 4) -> None:
    """Run the products of the encoder with errors that are the weights themselves."""
    left = torch.zeros(len(weight), weight.shape[1], factor.upper.shape[-1], device=weight.device)
    padded = left.shape[-1]
    errors = torch.zeros_like(left[..., : block_size * panel])
    for start in range(0, padded, block_size * panel):
        behind = min(start + block_size * panel, padded)
        for first in range(start, behind, block_size):
            end = first + block_size
            if end < behind:
                left[..., end:behind].baddbmm_(
                    errors[..., :block_size], factor.upper[:, first:end, end:behind], alpha=-1
                )
        if behind < padded:
            left[..., behind:].baddbmm_(errors[..., : behind - start], factor.upper[:, start:behind, behind:], alpha=-1)


def run_encoder(weight: torch.Tensor, factor: FeedbackFactor, scheme: Scheme, rows_per_warp: int) -> FeedbackRows:
    """Encode, with so many rows per warp if it is a GPU that runs."""
    return encode_feedback(weight, factor, scheme.tables, scheme.block_size, scheme.search, rows_per_warp)


def measure(name: str, shape: tuple[int, int], args: argparse.Namespace, device: torch.device) -> float:
    """Print the rows of one stack of experts; return the seconds of factor and encoder."""
    rows, columns = shape
    scheme = Scheme(args.bits)
    made = random_moments(args.experts, args.tokens, columns, device)
    x = torch.randn(args.tokens, columns, device=device).to(torch.bfloat16)
    weight = torch.randn(args.experts, rows, columns, device=device).to(torch.bfloat16) * 0.02
    millions = weight.numel() / 1e6
    shrunk = shrink(made)
    moment = seconds(lambda: [x.T @ x for _ in range(args.experts)], device)
    factoring = seconds(lambda: feedback_factor(Moments(shrunk.h.clone(), made.count), scheme.block_size), device)
    factor = feedback_factor(shrunk, scheme.block_size)
    spreading = seconds(lambda: spread_errors(weight, factor), device)
    print(f"| {name} | moments, {args.tokens} tokens | {moment:.4f} | |")
    print(f"| {name} | factor | {factoring:.4f} | |")
    print(f"| {name} | products of the encoder alone | {spreading:.4f} | |")
    best, coded = float("inf"), None
    for rows_per_warp in args.rows_per_warp:
        taken = seconds(lambda r=rows_per_warp: run_encoder(weight, factor, scheme, r), device)  # type: ignore[misc]
        print(f"| {name} | encoder, {rows_per_warp} rows per warp | {taken:.4f} | {millions / taken:,.0f} |")
        best = min(best, taken)
    coded = run_encoder(weight[:1, :64], factor[:1], scheme, args.rows_per_warp[0])
    cpu_factor = factor[0].to(torch.device("cpu"), torch.float32)
    on_cpu = run_encoder(weight[0, :64].cpu(), cpu_factor, scheme, 1)
    ratio = float(coded.loss.sum().cpu() / on_cpu.loss.sum())
    relative = float(on_cpu.loss.sum() / on_cpu.loss_energy.sum())
    print(f"| {name} | loss, 64 rows: {relative:.5f} on the CPU, times {ratio:.4f} here | | |")
    if device.type == "cuda":
        print(f"| {name} | peak memory, GB: {torch.cuda.max_memory_allocated() / 1e9:.1f} | | |")
    return factoring + best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=0, help="experts of the layer (128, on a CPU 2)")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="tokens of each expert's moments")
    parser.add_argument("--bits", type=int, default=4, help="width of a code")
    parser.add_argument("--rows-per-warp", type=int, nargs="+", default=[1, 2], help="kernels to time: 1, 2 or both")
    args = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    args.experts = args.experts or (128 if on_gpu else 2)
    name = torch.cuda.get_device_name() if on_gpu else "CPU, a small layer"
    print(f"{name}, {args.experts} experts, {args.bits} bits, torch {torch.__version__}\n")
    print("| stack | step | seconds | M weights/s |\n|---|---|---|---|")
    shapes = SHAPES if on_gpu else SMALL_SHAPES
    total = sum(measure(key, shape, args, device) for key, shape in shapes.items())
    print(f"\nFactor and encoder of one layer: {total:.3f} s; of {LAYERS} layers: {LAYERS * total:.1f} s")


if __name__ == "__main__":
    main()
