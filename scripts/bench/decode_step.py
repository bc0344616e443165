"""Where the time of one decoded token goes: kernel launches and microseconds per token, by kernel.

    python scripts/bench/decode_step.py FOLDER [--context 128] [--tokens 32] [--batch 1] [--eager] [--top 15]

FOLDER is a checkpoint, quantized or not. Steps are first timed by the clock, then run again under torch.profiler, which
sees every kernel of a replayed CUDA graph. `--eager` does the same without graphs: its clock shows the cost of
launches. On a CPU, operators take the place of kernels. Prompts are random tokens: the figures say something about
speed, not about quality.
"""

import argparse
import time
from collections import defaultdict
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import hlwq_cli  # noqa: F401  registers the quantizer with transformers
from hlwq_cli.runtime.decode import Decoder
from hlwq_cli.runtime.loading import load_model


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def prompt(model: Any, batch: int, context: int) -> dict[str, torch.Tensor]:
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, vocabulary // 2, (batch, context), generator=generator).to(model.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def decode(decoder: Decoder, logits: torch.Tensor, tokens: int) -> float:
    """Return seconds per token."""
    wait(decoder.device)
    start = time.perf_counter()
    for _ in range(tokens):
        logits = decoder.decode_step(logits.argmax(-1))
    wait(decoder.device)
    return (time.perf_counter() - start) / tokens


def kernels(decoder: Decoder, logits: torch.Tensor, tokens: int) -> dict[str, tuple[int, float]]:
    """Return the number of launches and their total microseconds, by kernel."""
    cuda = decoder.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with profile(activities=activities) as profiler:
        decode(decoder, logits, tokens)
    found: dict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    for event in profiler.events() or ():
        if event.device_type == (DeviceType.CUDA if cuda else DeviceType.CPU):
            count, spent = found[event.name]
            found[event.name] = count + 1, spent + (event.device_time if cuda else event.self_cpu_time_total)
    return found


def show(found: dict[str, tuple[int, float]], tokens: int, seconds: float, top: int) -> None:
    launches, busy = (sum(column) / tokens for column in zip(*found.values(), strict=True))
    print(f"{seconds * 1e6:.0f} us per token by the clock, {1 / seconds:.1f} tokens/s; under the profiler:")
    print(
        f"{launches:.0f} launches and {busy:.0f} us of kernels per token ({busy / seconds / 1e4:.0f} % of the clock's)"
    )
    print("| us/token | share | launches/token | us each | kernel |\n|---|---|---|---|---|")
    for name, (count, spent) in sorted(found.items(), key=lambda item: -item[1][1])[:top]:
        each, share = spent / count, spent / tokens / busy
        print(f"| {spent / tokens:.1f} | {share:.1%} | {count / tokens:.1f} | {each:.2f} | {name[:100]} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--context", type=int, default=128, help="prompt tokens")
    parser.add_argument("--tokens", type=int, default=32, help="decoded tokens to average over")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--eager", action="store_true", help="launch each kernel instead of replaying a CUDA graph")
    parser.add_argument("--top", type=int, default=15)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--execution", default="auto", choices=["auto", "coded", "dense"])
    args = parser.parse_args()
    model = load_model(args.folder, device=args.device, dtype=args.dtype, execution=args.execution)
    decoder = Decoder(model)
    if args.eager:
        decoder.graph_error = decoder.graph_error or "requested with --eager"
    with torch.inference_mode():
        logits = decoder.prefill(prompt(model, args.batch, args.context), 3 * args.tokens + 1)
        decode(decoder, logits, args.tokens)
        seconds = decode(decoder, logits, args.tokens)
        found = kernels(decoder, logits, args.tokens)
    how = "replayed CUDA graph" if decoder.graph_error is None else f"eager steps ({decoder.graph_error})"
    name = torch.cuda.get_device_name(decoder.device) if decoder.device.type == "cuda" else "CPU"
    print(f"{args.folder} on {name}: {how}, batch {args.batch}, after {args.context + args.tokens} tokens")
    show(found, args.tokens, seconds, args.top)


if __name__ == "__main__":
    main()
