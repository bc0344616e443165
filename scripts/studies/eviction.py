"""Which expert should be evicted? Hit rates of policies on recorded and synthetic routings, compared with an oracle.

    python scripts/studies/eviction.py [--tokens 4096] [--steps 3000]

Recorded routings come from the bundled sample's five layers (8 experts, top-2) on its held-out text. Synthetic ones
have 128 experts, top-8: `uniform`; `zipf`, with probability 1 / rank; `sticky`, where each expert of the last token
stays with probability .45 and the rest are uniform; `sticky zipf`, where the rest have probability 1 / rank. A step is
a token. Experts that it needs are never evicted in it, and all missing ones are fetched. Policies differ in what they
evict: the least recently used (LRU); the smallest use count, which decays by 2^-shift per step (LFU); the smallest sum
of a fast and a slow count, each divided by its maximum (mix); the one needed again last (oracle, which knows the
future). With `picky`, a missing expert does not replace one with a larger count.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch

from hlwq_cli.measure.text import load_text
from hlwq_cli.runtime.loading import load_model, load_processor

SHIFTS = (1, 2, 3, 4, 5, 6, 7)
Routing = list[frozenset[int]]
"""The experts that each step needs."""
Key = Callable[[int, int], float]
"""Maps an expert and a step to a priority: the smallest is evicted first."""


def recorded(tokens: int) -> list[Routing]:
    """Return the routing of each layer of the sample."""
    model = load_model("sample", device="cpu", dtype="float32")
    tokenizer = load_processor("sample")
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    ids = tokenizer(load_text("sample").text, return_tensors="pt").input_ids[:, :tokens]
    layers = [m for m in model.modules() if type(m).__name__.endswith("TextExperts")]
    found: list[Routing] = [[] for _ in layers]
    for layer, routing in zip(layers, found, strict=True):
        layer.register_forward_pre_hook(
            lambda module, args, routing=routing: routing.extend(frozenset(row) for row in args[1].tolist())
        )
    with torch.no_grad():
        for window in ids.split(512, dim=1):
            model(window)
    return found


def synthetic(kind: str, steps: int, experts: int = 128, k: int = 8, kept: float = 0.45) -> Routing:
    generator = torch.Generator().manual_seed(0)
    shares = 1.0 / torch.arange(1, experts + 1) if "zipf" in kind else torch.ones(experts)
    shares = shares[torch.randperm(experts, generator=generator)]
    routing: Routing = []
    for _ in range(steps):
        stays: list[int] = []
        if "sticky" in kind and routing:
            stays = [e for e in sorted(routing[-1]) if float(torch.rand(1, generator=generator)) < kept]
        left = shares.clone()
        left[list(routing[-1]) if kind == "sticky" and routing else stays] = 0
        drawn = torch.multinomial(left, k - len(stays), generator=generator).tolist() if len(stays) < k else []
        routing.append(frozenset([*stays, *drawn]))
    return routing


def lru(routing: Routing, experts: int) -> Key:
    last = [-1] * experts

    def key(expert: int, step: int) -> float:
        return last[expert]

    key.used = lambda needed, step: [last.__setitem__(e, step) for e in needed]  # type: ignore[attr-defined]
    return key


def lfu(shift: int) -> Callable[[Routing, int], Key]:
    """Count as hlwq_kernels.offload does, in integers."""

    def policy(routing: Routing, experts: int) -> Key:
        scores = [0] * experts

        def used(needed: frozenset[int], step: int) -> None:
            for e in range(experts):
                scores[e] += (e in needed) * 2**20 - -(-scores[e] // 2**shift)

        def key(expert: int, step: int) -> float:
            return scores[expert]

        key.used = used  # type: ignore[attr-defined]
        return key

    return policy


def mix(quick: int, slow: int) -> Callable[[Routing, int], Key]:
    def policy(routing: Routing, experts: int) -> Key:
        both: list[Any] = [lfu(shift)(routing, experts) for shift in (quick, slow)]

        def key(expert: int, step: int) -> float:
            return float(both[0](expert, step) / 2**quick + both[1](expert, step) / 2**slow)

        key.used = lambda needed, step: [each.used(needed, step) for each in both]  # type: ignore[attr-defined]
        return key

    return policy


def oracle(routing: Routing, experts: int) -> Key:
    uses: list[list[int]] = [[] for _ in range(experts)]
    for step in reversed(range(len(routing))):
        for e in routing[step]:
            uses[e].append(step)

    def key(expert: int, step: int) -> float:
        while uses[expert] and uses[expert][-1] <= step:
            uses[expert].pop()
        return -uses[expert][-1] if uses[expert] else -float("inf")

    key.used = lambda needed, step: None  # type: ignore[attr-defined]
    return key


POLICIES: dict[str, Callable[[Routing, int], Key]] = {
    "LRU": lru, **{f"LFU {s}": lfu(s) for s in SHIFTS}, "LFU 5, picky": lfu(5), "LFU 7, picky": lfu(7),
    "mix 1, 5": mix(1, 5), "oracle": oracle,
}  # fmt: skip


def hit_rate(
    routing: Routing, experts: int, slots: int, policy: Callable[[Routing, int], Key], picky: bool = False
) -> float:
    """Return the fraction of needed experts that were resident; the first tenth of the steps is not counted."""
    key: Any = policy(routing, experts)
    held: set[int] = set()
    hits = wanted = 0
    for step, needed in enumerate(routing):
        if step >= len(routing) // 10:
            hits += len(needed & held)
            wanted += len(needed)
        key.used(needed, step)
        missing, idle = sorted(needed - held), sorted(held - needed, key=lambda e: key(e, step))
        room = slots - len(held)
        if picky:
            missing.sort(key=lambda e: -key(e, step))
            pairs = zip(missing[room:], idle, strict=False)
            missing = missing[: room + sum(key(e, step) > key(other, step) for e, other in pairs)]
        replaced = idle[: max(0, min(len(missing) - room, len(idle)))]
        held = held - set(replaced) | set(missing[: room + len(replaced)])
    return hits / wanted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of the recorded text")
    parser.add_argument("--steps", type=int, default=3000, help="steps of synthetic routings")
    args = parser.parse_args()
    print("| routing | slots | " + " | ".join(POLICIES) + " |")
    print("|---|---|" + "---|" * len(POLICIES))
    layers = recorded(args.tokens)
    for slots in (1, 2, 3, 4, 6):
        rates = [sum(hit_rate(r, 8, slots, p, "picky" in n) for r in layers) / len(layers) for n, p in POLICIES.items()]
        print(f"| sample | {slots} of 8 | " + " | ".join(f"{r:.3f}" for r in rates) + " |", flush=True)
    for kind in ("uniform", "zipf", "sticky", "sticky zipf"):
        routing = synthetic(kind, args.steps)
        for slots in (16, 34, 64, 99):
            rates = [hit_rate(routing, 128, slots, p, "picky" in n) for n, p in POLICIES.items()]
            print(f"| {kind} | {slots} of 128 | " + " | ".join(f"{r:.3f}" for r in rates) + " |", flush=True)


if __name__ == "__main__":
    main()
