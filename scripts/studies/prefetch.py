"""Does prefetching a layer's experts pay off? Predictions made one layer early, and a model of the time they save.

    python scripts/studies/prefetch.py [--tokens 4096] [--steps 3000] [--slots 34 99] [--work 100]

A layer's router can be asked early, with what the previous layer has available: its input, the sum after attention
(which its own router sees), or its output. The first table shows how often this names the experts chosen later, for the
bundled sample on held-out text, compared with the experts of the token before and a layer's most frequent ones. Then
slots are simulated as the product keeps them, with the missing predicted experts prefetched, up to a limit per layer.
The time of a layer is copies of records, one after the other, and other work, during which the link is idle. That is
when predicted experts can be copied; what exceeds it is waited for. In the tables of tokens per second, a column is a
prediction and the maximum number of experts prefetched per layer. Synthetic predictions name each expert with the given
probability, in any order.
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy
import torch

from hlwq_cli.measure.text import load_text
from hlwq_cli.runtime.loading import load_model, load_processor
from hlwq_kernels.offload import SHIFT, UNIT
from scripts.studies.eviction import Routing, synthetic

COPY, LAYERS = 3.81e6 / 50e9, 30
"""Seconds to copy a record of 3.81 MB at 50 GB/s; layers of Gemma 4 26B."""
SOURCES = ("input", "sum after attention", "output", "token before", "most frequent")
Guesses = list[list[int]]
"""The predicted experts of each step, most likely first."""


class Recorded(NamedTuple):
    """A layer: its routing, and the predictions of it by source."""

    routing: Routing
    guesses: dict[str, Guesses]


def recorded(tokens: int) -> list[Recorded]:
    """Return the sample's layers except the first, which has no previous layer."""
    model = load_model("sample", device="cpu", dtype="float32")
    tokenizer = load_processor("sample")
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    ids = tokenizer(load_text("sample").text, return_tensors="pt").input_ids[:, :tokens]
    layers = [m for m in model.modules() if type(m).__name__ == "Gemma4TextDecoderLayer"]
    found = [Recorded([], {source: [] for source in SOURCES}) for _ in layers]
    for number, layer in enumerate(layers):
        layer.experts.register_forward_pre_hook(
            lambda module, args, n=number: found[n].routing.extend(frozenset(row) for row in args[1].tolist())
        )
    for layer, following, guessed in zip(layers, layers[1:], found[1:], strict=False):

        def note(source: str, states: torch.Tensor, router: Any = following.router, into: Recorded = guessed) -> None:
            scores = router.proj(router.norm(states.flatten(0, -2)) * router.scale * router.scalar_root_size)
            into.guesses[source] += scores.argsort(-1, descending=True).tolist()

        layer.register_forward_pre_hook(lambda module, args, note=note: note(SOURCES[0], args[0]))
        layer.router.register_forward_pre_hook(lambda module, args, note=note: note(SOURCES[1], args[0]))
        layer.register_forward_hook(lambda module, args, out, note=note: note(SOURCES[2], out))
    with torch.no_grad():
        for window in ids.split(512, dim=1):
            model(window)
    for routing, guesses in found[1:]:
        often = sorted(range(8), key=lambda e, routing=routing: -sum(e in needed for needed in routing))
        guesses["token before"] += [sorted(before) for before in [routing[0], *routing[:-1]]]
        guesses["most frequent"] += [often] * len(routing)
    return found[1:]


def count_correct(layer: Recorded, source: str, places: slice) -> tuple[int, int]:
    """Return how many predictions at some positions were correct, and how many there are."""
    named = [g[places] for g in layer.guesses[source]]
    return sum(len(n.intersection(g)) for n, g in zip(layer.routing, named, strict=True)), sum(map(len, named))


class Played(NamedTuple):
    """Means per step of a simulated layer: experts missing at its start, and seconds."""

    missing: float
    seconds: float


def play(routing: Routing, guesses: Guesses, experts: int, slots: int, most: int, work: float) -> Played:
    """Simulate slots with at most `most` experts prefetched per step; the first tenth of the steps is not counted."""
    scores, held = numpy.zeros(experts, dtype=numpy.int64), set[int]()
    counts, start = numpy.zeros(2), len(routing) // 10

    def ensure_resident(experts_to_load: list[int], keep: frozenset[int]) -> None:
        idle = sorted(held - keep, key=lambda e: scores[e])
        free_slots = slots - len(held)
        loaded = experts_to_load[: free_slots + len(idle)]
        held.difference_update(idle[: max(0, len(loaded) - free_slots)])
        held.update(loaded)

    for step, (needed, guess) in enumerate(zip(routing, guesses, strict=True)):
        ahead = [e for e in guess[: len(needed)] if e not in held][: min(most, slots)]
        ensure_resident(ahead, frozenset(guess[: len(needed)]))
        missing = sorted(needed - held)
        scores -= -(-scores >> SHIFT)
        scores[list(needed)] += UNIT
        ensure_resident(missing, needed)
        if step >= start:
            counts += (len(missing), max(work, len(ahead) * COPY) + len(missing) * COPY)
    return Played(*(counts / (len(routing) - start)).tolist())


def synthetic_guesses(routing: Routing, recall: float, experts: int) -> Guesses:
    """Return predictions that name each needed expert with probability `recall`, else a uniform other; in any order."""
    random = numpy.random.default_rng(0)
    found = []
    for needed in routing:
        others = [e for e in range(experts) if e not in needed]
        named = [e if random.random() < recall else int(random.choice(others)) for e in sorted(needed)]
        found.append(random.permutation(list(dict.fromkeys(named))).tolist())
    return found


def print_header(*names: str) -> Callable[..., None]:
    """Print a table's header and return a function that prints its rows."""
    print("\n| " + " | ".join(names) + " |\n|" + "---|" * len(names), flush=True)
    return lambda *cells: print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def show_recall(layers: list[Recorded]) -> float:
    """Print the recall table; return the mean recall of the prediction from the sum after attention."""
    row = print_header(
        "predicted from", *(f"layer {n}" for n in range(2, len(layers) + 2)), "mean", "first correct", "second"
    )
    means = {}
    for source in SOURCES:
        shares = [
            hits / len(layer.routing) / 2 for layer in layers for hits, _ in [count_correct(layer, source, slice(2))]
        ]
        places = [[count_correct(layer, source, slice(p, p + 1)) for layer in layers] for p in range(2)]
        first, second = (sum(h for h, _ in some) / sum(n for _, n in some) for some in places)
        means[source] = sum(shares) / len(shares)
        row(source, *(f"{s:.3f}" for s in (*shares, means[source], first, second)))
    return means["sum after attention"]


def rate(played: list[Played]) -> str:
    """Return the tokens per second of LAYERS such layers, as text."""
    return f"{1 / (LAYERS * sum(p.seconds for p in played) / len(played)):.1f}"


def show_sample(layers: list[Recorded], work: float) -> None:
    of_each = {source: [layer.guesses[source] for layer in layers] for source in SOURCES[:3]}
    of_each["no recall"] = [[sorted(set(range(8)) - n)[:2] for n in layer.routing] for layer in layers]
    of_each["perfect"] = [[sorted(n) for n in layer.routing] for layer in layers]
    row = print_header(
        "sample, tok/s", "missing", "without", *(f"{name}, {most}" for name in of_each for most in (1, 2))
    )
    for slots in (1, 2, 3, 4, 6):
        plain = [play(layer.routing, layer.guesses["input"], 8, slots, 0, work) for layer in layers]
        rates = [
            rate([play(r.routing, g, 8, slots, most, work) for r, g in zip(layers, guesses, strict=True)])
            for guesses in of_each.values()
            for most in (1, 2)
        ]
        row(f"{slots} of 8", f"{sum(p.missing for p in plain) / len(plain):.2f}", rate(plain), *rates)


def show_synthetic(steps: int, slots: list[int], recalls: list[float], work: float) -> None:
    row = print_header(
        "synthetic, tok/s", "missing", "without", *(f"recall {r:.2f}, {most}" for r in recalls for most in (1, 2, 8))
    )
    for kind in ("uniform", "zipf", "sticky", "sticky zipf"):
        routing = synthetic(kind, steps)
        guesses = [synthetic_guesses(routing, recall, 128) for recall in recalls]
        for own in slots:
            plain = play(routing, guesses[0], 128, own, 0, work)
            rates = [rate([play(routing, g, 128, own, most, work)]) for g in guesses for most in (1, 2, 8)]
            row(f"{kind}, {own} of 128", f"{plain.missing:.2f}", rate([plain]), *rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of the recorded text")
    parser.add_argument("--steps", type=int, default=3000, help="steps of synthetic routings")
    parser.add_argument(
        "--slots", type=int, nargs="+", default=[34, 99], help="slots for the 128 experts of synthetic routings"
    )
    parser.add_argument("--work", type=float, default=100, help="microseconds of a layer without copies")
    args = parser.parse_args()
    layers, work = recorded(args.tokens), args.work / 1e6
    recall = show_recall(layers)
    show_sample(layers, work)
    show_synthetic(args.steps, args.slots, [0.0, 0.5, recall, 1.0], work)


if __name__ == "__main__":
    main()
