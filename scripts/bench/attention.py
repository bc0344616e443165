"""Attention of one new token per sequence over a quantized KV cache, compared with torch's over a bfloat16 cache.

    python scripts/bench/attention.py [check] [attention] [encode]

Each figure is the median over replays of one CUDA graph. The graph holds many calls, each on its own cache; together
the caches are far larger than the L2 cache (see linear.py). Both sides are timed this way. torch's time is the better
of two ways to call scaled_dot_product_attention: with `enable_gqa`, and with the query heads that share a key/value
head packed as that many queries, which is how transformers calls it for one token. Codes are random bytes: the figures
say something about speed, not about quality.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from hlwq_cli.codec import lloyd_max
from hlwq_kernels.attention import AttentionParams, KVTables, QuantizedKV, attend, attend_reference, encode_kv
from scripts.bench.codec_gpu import copy_bandwidth
from scripts.bench.linear import seconds

LAYOUTS = {"gemma4-26b full layer, 16 x 512 on 2": (16, 2, 512), "llama-like, 32 x 128 on 8": (32, 8, 128)}
LENGTHS = (4096, 32768, 131072)
BATCHES = (1, 8)
BITS = (8, 4, 3, 2)
EXACT_TOKENS = 80
COLD_BYTES, MAX_COPIES = 2 * 10**8, 40


@cache
def tables(bits: int) -> KVTables:
    """Return the decoding tables of a width on the GPU."""
    return KVTables.of(lloyd_max(bits), torch.device("cuda"))


def random_cache(batch: int, heads: int, dim: int, tokens: int, bits: int) -> QuantizedKV:
    """Return random codes of heads whose root mean squares are near 1, with a tail of exact tokens."""
    coded = tokens - EXACT_TOKENS
    codes = torch.randint(0, 256, (batch, heads, coded, dim * bits // 8), dtype=torch.uint8, device="cuda")
    scales = torch.randint(124, 133, (batch, heads, coded), dtype=torch.uint8, device="cuda")
    exact = torch.randn(batch, heads, EXACT_TOKENS, dim, device="cuda", dtype=torch.bfloat16)
    return QuantizedKV(codes, scales, coded, exact, coded, tables(bits))


def num_copies(bytes_each: int) -> int:
    """Return how many caches are together far larger than the L2 cache."""
    return 1 + min(MAX_COPIES, COLD_BYTES // bytes_each)


def dense_seconds(query: torch.Tensor, heads: int, tokens: int) -> tuple[float, str]:
    """Return torch's time over bfloat16 keys and values, and the name of the faster way to call it."""
    batch, query_heads, _, dim = query.shape
    count = num_copies(4 * batch * heads * tokens * dim)
    caches = [
        [torch.randn(batch, heads, tokens, dim, device="cuda", dtype=torch.bfloat16) for _ in "kv"]
        for _ in range(count)
    ]
    packed = query.reshape(batch, heads, query_heads // heads, dim)
    ways: dict[str, list[Callable[[], object]]] = {
        "packed": [partial(sdpa, packed, k, v) for k, v in caches],
        "gqa": [partial(sdpa, query, k, v, enable_gqa=True) for k, v in caches],
    }
    times = {}
    for name, calls in ways.items():
        try:
            times[name] = seconds(calls)
        except RuntimeError as error:  # torch has no kernel for these heads, or there is no memory for the copies
            print(f"(torch cannot run {name}: {str(error).splitlines()[0][:80]})")
    best = min(times, key=lambda name: times[name])
    return times[best], best


def attention_lines(bandwidth: float) -> Iterator[str]:
    """Yield the lines of the attention table."""
    yield "\n| heads | tokens | sequences | bits | us | torch bf16, us | times torch | GB/s | of copy |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, (query_heads, heads, dim) in LAYOUTS.items():
        for tokens in LENGTHS:
            for batch in BATCHES:
                query = torch.randn(batch, query_heads, 1, dim, device="cuda", dtype=torch.bfloat16)
                dense, way = dense_seconds(query, heads, tokens)
                for bits in BITS:
                    ours, bytes_read = coded_seconds(query, heads, tokens, bits)
                    yield (
                        f"| {name} | {tokens} | {batch} | {bits} | {ours * 1e6:.1f} | {dense * 1e6:.1f} ({way}) "
                        f"| {dense / ours:.2f} | {bytes_read / ours / 1e9:.0f} | {bytes_read / ours / bandwidth:.0%} |"
                    )


def coded_seconds(query: torch.Tensor, heads: int, tokens: int, bits: int) -> tuple[float, int]:
    """Return the time of our kernel, and the bytes that a call reads."""
    batch, dim = query.shape[0], query.shape[-1]
    first = [random_cache(batch, heads, dim, tokens, bits) for _ in "kv"]
    bytes_read = sum(s.codes.nbytes + s.scales.nbytes + s.exact.nbytes for s in first)
    caches = [first] + [
        [random_cache(batch, heads, dim, tokens, bits) for _ in "kv"] for _ in range(num_copies(bytes_read) - 1)
    ]
    seen, params = torch.tensor([tokens - EXACT_TOKENS]), AttentionParams(dim**-0.5)
    return seconds([partial(attend, query, k, v, seen, params) for k, v in caches]), bytes_read


def check_lines(_: float) -> Iterator[str]:
    """Compare the kernel with the torch reference on small caches of every width."""
    for name, (query_heads, heads, dim) in LAYOUTS.items():
        for bits in BITS:
            k, v = (random_cache(2, heads, dim, 3000, bits) for _ in range(2))
            query = torch.randn(2, query_heads, 1, dim, device="cuda", dtype=torch.bfloat16)
            seen, params = torch.tensor([k.coded]), AttentionParams(dim**-0.5)
            found, exactly = attend(query, k, v, seen, params), attend_reference(query.float(), k, v, seen, params)
            off = float((found.float() - exactly).abs().max() / exactly.abs().max())
            yield f"{name}, {bits} bits: largest difference from torch {off:.1e} of the largest value"


def encode_lines(_: float) -> Iterator[str]:
    """Yield the lines of the table of encoding times."""
    yield "\n| encoding | heads | tokens | bits | us | million values/s |"
    yield "|---|---|---|---|---|---|"
    for name, (_, heads, dim) in LAYOUTS.items():
        for tokens in (32, 8192):
            for bits in (4, 8):
                count = num_copies(2 * heads * tokens * dim)
                some = [torch.randn(1, heads, tokens, dim, device="cuda", dtype=torch.bfloat16) for _ in range(count)]
                time = seconds([partial(encode_kv, x, tables(bits)) for x in some])
                yield (
                    f"| keys or values | {name} | {tokens} | {bits} | {time * 1e6:.1f} "
                    f"| {some[0].numel() / time / 1e6:.0f} |"
                )


SECTIONS = {"check": check_lines, "attention": attention_lines, "encode": encode_lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help="check, attention, encode; default: all")
    args = parser.parse_args()
    bandwidth = copy_bandwidth(9)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, copy {bandwidth / 1e9:.0f} GB/s", flush=True)
    for name in args.sections or SECTIONS:
        for line in SECTIONS[name](bandwidth):
            print(line, flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
