"""A quantized KV cache: how large it is, what it costs in fidelity, and whether a fact in the prompt is still found.

    python scripts/bench/kv_cache.py bytes
    python scripts/bench/kv_cache.py fidelity MODEL --data FILE [--window 2048] [--windows 4]
    python scripts/bench/kv_cache.py retrieval MODEL --data FILE [--tokens 1000 2000 4000] [--places 12]

`bytes` fills layers of each width with random tokens and counts the bytes that they hold, spare capacity included.
`fidelity` is `hlwq bench MODEL --ref MODEL --kld --kv-bits K,V` for many K and V; 8 bits mean that this side is left
almost unchanged. `retrieval` hides a sentence with a number in a text of a given length, asks for the number at the
end, and counts the greedy answers that contain it, over evenly spread positions.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from hlwq_cli.measure import Request, bench
from hlwq_cli.runtime import HLWQModel
from hlwq_cli.runtime.kv import CodedLayer, KVBits

PAIRS = (
    "8,8", "6,6", "5,5", "4,4", "3,3", "2,2",
    "5,8", "4,8", "3,8", "2,8",
    "8,5", "8,4", "8,3", "8,2",
    "6,4", "5,4", "5,3", "4,3", "4,2",
)  # fmt: skip
LAYERS = [(64, "4"), *((128, bits) for bits in ("8", "4", "4,3", "3", "2")), (512, "4"), (512, "3")]
LENGTHS = (1024, 32 * 1024, 256 * 1024)
FACT = "The number of the lighthouse keeper is {number}."
QUESTION = "What is the number of the lighthouse keeper? Answer with the number only."


def bytes_table(_: argparse.Namespace) -> Iterator[str]:
    yield "| KV bits | head_dim | " + " | ".join(f"{n // 1024}k tokens" for n in LENGTHS) + " | one quantized token |"
    yield "|---|---|" + "---|" * (len(LENGTHS) + 1)
    for dim, bits in LAYERS:
        layer, ratios = CodedLayer(KVBits.parse(bits)), []
        for length in LENGTHS:
            while layer.length < length:
                new = torch.randn(2, 1, 1, min(4096, length - layer.length), dim).bfloat16()
                layer.update(new[0], new[1])
            ratios.append(2 * 2 * dim * length / layer.nbytes)
        ratios.append(layer.dense_token_bytes / layer.token_bytes)
        yield f"| {bits} | {dim} | " + " | ".join(f"{r:.2f}x" for r in ratios) + " |"


def fidelity_table(args: argparse.Namespace) -> Iterator[str]:
    yield "| K bits, V bits | PPL | delta ln PPL, paired | KLD | 99 % | top-1 agreement |"
    yield "|---|---|---|---|---|---|"
    for pair in args.pairs:
        request = Request(
            kld=True,
            data=args.data,
            window=args.window,
            windows=args.windows,
            dtype="float32",
            device=args.device,
            kv_bits=KVBits.parse(pair),
        )
        report = bench([args.model], request, args.model)
        (m,) = report.measured
        assert m.divergence
        assert m.perplexity
        assert m.delta
        if pair == args.pairs[0] and report.reference and report.reference.perplexity:
            yield f"| not quantized | {report.reference.perplexity.value:.3f} | | | | |"
        yield (
            f"| {pair} | {m.perplexity.value:.3f} | {m.delta.log_ratio:+.4f} ± {m.delta.error:.4f} "
            f"| {m.divergence.mean:.5f} ± {m.divergence.error:.5f} | {m.divergence.percentiles['99']:.3f} "
            f"| {m.divergence.same_top:.4f} |"
        )
        protocol = report.protocol
    yield f"\n{protocol.line if protocol else ''}"


def retrieval_table(args: argparse.Namespace) -> Iterator[str]:
    yield "| KV bits | " + " | ".join(f"{n} tokens" for n in args.tokens) + " |"
    yield "|---|" + "---|" * len(args.tokens)
    for bits in (None, *args.pairs):
        model = HLWQModel.from_pretrained(args.model, device=args.device, kv_cache_nbits=bits)
        found = [
            sum(finds_number(model, args.data, n, place, args.places) for place in range(args.places))
            for n in args.tokens
        ]
        yield f"| {bits or 'not quantized'} | " + " | ".join(f"{f} of {args.places}" for f in found) + " |"


def finds_number(model: Any, data: str, tokens: int, place: int, places: int) -> bool:
    """Return whether the model finds a number hidden at position `place` of `places` in a text of `tokens` tokens."""
    number = str(1000 + (place * 7919 + tokens) % 9000)
    ids = model.tokenizer(Path(data).read_text(errors="replace")[: tokens * 8], verbose=False).input_ids
    at = (2 * place + 1) * tokens // (2 * places)
    before, after = (model.tokenizer.decode(part) for part in (ids[:at], ids[at:tokens]))
    answer = model.generate(f"{before} {FACT.format(number=number)} {after}\n\n{QUESTION}", max_new_tokens=12)
    return number in answer


TABLES = {"bytes": bytes_table, "fidelity": fidelity_table, "retrieval": retrieval_table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--data", help="text file")
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1000, 2000, 4000])
    parser.add_argument("--places", type=int, default=12)
    parser.add_argument("--pairs", nargs="+", default=PAIRS, help="bits of keys,values")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    if args.table != "bytes" and not (args.model and args.data):
        parser.error("this table needs MODEL and --data")
    disable_progress_bar()
    torch.manual_seed(0)
    for line in TABLES[args.table](args):
        print(line, flush=True)


if __name__ == "__main__":
    main()
