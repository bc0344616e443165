"""Attention of one new token a sequence over a cache in codes, beside torch's over the same cache in bfloat16.

Part of bench_kernels.py, as its sections `attention` and `attention-tiles`. Codes are random bytes: speed, not quality.
torch's time is the better of two ways to call scaled_dot_product_attention: with `enable_gqa`, and with the query
heads that share a key/value head taken as so many queries, which is how transformers calls it for one token.
"""

from collections.abc import Callable, Iterator

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from hlwq_cli.codec import lloyd_max
from hlwq_kernels import attention_triton
from hlwq_kernels.attention import CachedTokens, Rule, attend
from hlwq_kernels.attention_torch import attend_torch
from hlwq_kernels.tokens import TokenTables, encode_tokens

LAYOUTS = {"gemma4-26b full layer, 16 x 512 on 2": (16, 2, 512), "llama-like, 32 x 128 on 8": (32, 8, 128)}
LENGTHS = (4096, 32768, 131072)
BATCHES = (1, 8)
BITS = (8, 4, 3, 2)
EXACT = 80
Timer = Callable[[Callable[[], object], int], float]


def cache(batch: int, heads: int, dim: int, tokens: int, bits: int) -> CachedTokens:
    """Random codes of heads whose root mean squares are near 1, and a tail of exact tokens."""
    tables, coded = TokenTables.of(lloyd_max(bits), torch.device("cuda")), tokens - EXACT
    codes = torch.randint(0, 256, (batch, heads, coded, dim * bits // 8), dtype=torch.uint8, device="cuda")
    scales = torch.randint(124, 133, (batch, heads, coded), dtype=torch.uint8, device="cuda")
    exact = torch.randn(batch, heads, EXACT, dim, device="cuda", dtype=torch.bfloat16)
    return CachedTokens(codes, scales, coded, exact, coded, tables)


def dense_seconds(timer: Timer, runs: int, query: torch.Tensor, heads: int, tokens: int) -> tuple[float, str]:
    """torch's time over keys and values in bfloat16, and which way was the better."""
    batch, query_heads, _, dim = query.shape
    k, v = (torch.randn(batch, heads, tokens, dim, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    packed = query.reshape(batch, heads, query_heads // heads, dim)
    ways = {"packed": lambda: sdpa(packed, k, v), "gqa": lambda: sdpa(query, k, v, enable_gqa=True)}
    times = {}
    for name, way in ways.items():
        try:
            times[name] = timer(way, runs)
        except RuntimeError as error:  # no kernel of torch's takes these heads so, or memory for copies is short
            print(f"(torch cannot take {name}: {str(error).splitlines()[0][:80]})")
    best = min(times, key=lambda name: times[name])
    return times[best], best


def attention_table(timer: Timer, runs: int, bandwidth: float) -> Iterator[str]:
    yield from _checked()
    yield "| heads | tokens | sequences | bits | us | torch bf16, us | times torch | GB/s | of copy |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, (query_heads, heads, dim) in LAYOUTS.items():
        for tokens in LENGTHS:
            for batch in BATCHES:
                query = torch.randn(batch, query_heads, 1, dim, device="cuda", dtype=torch.bfloat16)
                dense, way = dense_seconds(timer, runs, query, heads, tokens)
                for bits in BITS:
                    k, v = (cache(batch, heads, dim, tokens, bits) for _ in range(2))
                    seconds = _seconds(timer, runs, query, k, v)
                    moved = sum(s.codes.nbytes + s.scales.nbytes + s.exact.nbytes for s in (k, v))
                    yield (
                        f"| {name} | {tokens} | {batch} | {bits} | {seconds * 1e6:.1f} | {dense * 1e6:.1f} ({way}) "
                        f"| {dense / seconds:.2f} | {moved / seconds / 1e9:.0f} | {moved / seconds / bandwidth:.0%} |"
                    )
    yield from _encoding(timer, runs)


def _seconds(timer: Timer, runs: int, query: torch.Tensor, k: CachedTokens, v: CachedTokens) -> float:
    seen, rule = torch.tensor([k.coded]), Rule(query.shape[-1] ** -0.5)
    return timer(lambda: attend(query, k, v, seen, rule), runs)


def _checked() -> Iterator[str]:
    """That the kernel's answer is that of torch, on small caches of every width."""
    for name, (query_heads, heads, dim) in LAYOUTS.items():
        for bits in BITS:
            k, v = (cache(2, heads, dim, 3000, bits) for _ in range(2))
            query = torch.randn(2, query_heads, 1, dim, device="cuda", dtype=torch.bfloat16)
            seen, rule = torch.tensor([k.coded]), Rule(dim**-0.5)
            found, exactly = attend(query, k, v, seen, rule), attend_torch(query.float(), k, v, seen, rule)
            off = float((found.float() - exactly).abs().max() / exactly.abs().max())
            yield f"{name}, {bits} bits: largest difference from torch {off:.1e} of the largest value"
    yield ""


def _encoding(timer: Timer, runs: int) -> Iterator[str]:
    yield "\n| coding tokens | heads | tokens | bits | us | million values/s |"
    yield "|---|---|---|---|---|---|"
    for name, (_, heads, dim) in LAYOUTS.items():
        for tokens in (32, 8192):
            for bits in (4, 8):
                x = torch.randn(1, heads, tokens, dim, device="cuda", dtype=torch.bfloat16)
                tables = TokenTables.of(lloyd_max(bits), x.device)
                seconds = timer(lambda: encode_tokens(x, tables), runs)  # noqa: B023
                yield (
                    f"| keys or values | {name} | {tokens} | {bits} | {seconds * 1e6:.1f} "
                    f"| {x.numel() / seconds / 1e6:.0f} |"
                )


def tiles_table(timer: Timer, runs: int, _: float) -> Iterator[str]:
    """Times at 4 bits with other tiles and stages of the pipeline than the kernel's own, to choose them by."""
    own = (attention_triton.TILE_VALUES, attention_triton.STAGES)
    yield "| heads | tokens | sequences | values in a tile | stages | us |"
    yield "|---|---|---|---|---|---|"
    for name, (query_heads, heads, dim) in LAYOUTS.items():
        for tokens, batch in ((4096, 1), (131072, 1), (32768, 8)):
            query = torch.randn(batch, query_heads, 1, dim, device="cuda", dtype=torch.bfloat16)
            k, v = (cache(batch, heads, dim, tokens, 4) for _ in range(2))
            for values in (own[0] // 2, own[0]):
                for stages in (1, 2, 3):
                    attention_triton.TILE_VALUES, attention_triton.STAGES = values, stages
                    seconds = _seconds(timer, runs, query, k, v)
                    yield f"| {name} | {tokens} | {batch} | {values} | {stages} | {seconds * 1e6:.1f} |"
    attention_triton.TILE_VALUES, attention_triton.STAGES = own
