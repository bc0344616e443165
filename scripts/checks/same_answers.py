"""Check that a quantized checkpoint run on a GPU gives the answers of its decoded weights on the CPU.

    python scripts/checks/same_answers.py FOLDER... [--device cuda:0]

For each folder, in float32: the 64 greedy tokens after each prompt, and after a picture if the model supports images,
must be equal; perplexity of the bundled addresses must agree to 1e-3. In bfloat16: the KL divergence from float32 on
the CPU, reading 1 and 8 tokens at a time (the kernels that multiply by codes) and all at once (layers are decoded),
must be at most 1.5 times that of the same weights decoded to bfloat16. It is the median of 256 tokens, because a mean
is dominated by single tokens that rounding sends to another expert. Exits with 1 if a check fails.
"""

import argparse
import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from transformers import DynamicCache

from hlwq_cli.measure.perplexity import perplexity, score
from hlwq_cli.measure.text import load_text
from hlwq_cli.measure.windows import Windows, make_windows
from hlwq_cli.runtime import HLWQModel
from hlwq_cli.runtime.kv import cache_argument
from hlwq_cli.samples import sample_file

PROMPTS = ("My fellow citizens,", "The state of our union is", "We")
QUESTION = "What is in the picture?"
NEW_TOKENS = 64
STEPS = (1, 8, 256)
"""Tokens read at a time."""
NUM_READ = 256
LARGEST_CHANGE = 1e-3
TIMES_DENSE = 1.5
FLOOR = 1e-6
"""Nats. Smaller divergences are float32 rounding."""


@dataclass(frozen=True)
class Comparison:
    """The results of one checkpoint.

    Attributes:
        folder: the checkpoint.
        different: prompts whose answers differ, with the index of the first different token.
        perplexities: of decoded weights on the CPU and of codes on the device, float32.
        coded: median KL divergence of codes in bfloat16, in nats, by tokens read at a time.
        dense: the same for decoded weights in bfloat16.
    """

    folder: str
    different: dict[str, int]
    perplexities: tuple[float, float]
    coded: dict[int, float]
    dense: dict[int, float]

    @property
    def change(self) -> float:
        """Return the relative change of perplexity."""
        return abs(self.perplexities[1] / self.perplexities[0] - 1)

    @property
    def failures(self) -> list[str]:
        """Return one phrase per failed check."""
        found = [f"{prompt!r} has a different answer from token {at} on" for prompt, at in self.different.items()]
        if not self.change < LARGEST_CHANGE:
            found.append(f"perplexity is {self.perplexities[1]} instead of {self.perplexities[0]}")
        far = [s for s, kld in self.coded.items() if not kld <= TIMES_DENSE * self.dense[s] + FLOOR]
        return found + [f"divergence {s} tokens at a time is {self.coded[s]}, decoded {self.dense[s]}" for s in far]


@torch.inference_mode()
def answer(model: HLWQModel, prompt: str, picture: Image.Image | None) -> list[int]:
    """Return 64 greedy tokens, past any end-of-sequence token."""
    inputs = model.prepare([prompt], None if picture is None else [[picture]], chat=picture is not None)
    out = model.generation.generate(
        **inputs,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        temperature=None,
        top_p=None,
        top_k=None,
    )
    tokens: list[int] = out[0, inputs["input_ids"].shape[1] :].tolist()
    return tokens


def answers(model: HLWQModel) -> dict[str, list[int]]:
    found = {prompt: answer(model, prompt, None) for prompt in PROMPTS}
    if model.supports_images:
        with Image.open(sample_file("eval/picture-00.png")) as picture:
            found[QUESTION] = answer(model, QUESTION, picture.convert("RGB"))
    return found


def first_difference(ours: list[int], theirs: list[int]) -> int | None:
    if len(ours) != len(theirs):
        return min(len(ours), len(theirs))
    return next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), None)


@torch.inference_mode()
def log_probabilities(model: Any, ids: torch.Tensor, step: int) -> torch.Tensor:
    """Return log-probabilities of every next token, float32 (tokens, vocabulary) on the CPU.

    The model reads `step` tokens at a time.
    """
    cache, found = DynamicCache(config=model.config.get_text_config()), []
    for piece in ids.to(model.device)[None].split(step, dim=1):
        logits = model(input_ids=piece, use_cache=True, **cache_argument(model, cache)).logits[0]
        found.append(torch.log_softmax(logits.float(), dim=-1).cpu())
    return torch.cat(found)


def divergences(model: Any, expected: torch.Tensor, ids: torch.Tensor) -> dict[int, float]:
    found = {}
    for step in STEPS:
        terms = expected.exp() * (expected - log_probabilities(model, ids, step))
        found[step] = float(terms.double().sum(-1).median())
    return found


def windows_for(model: HLWQModel, windows: int, window: int) -> Windows:
    return make_windows(load_text("sample"), model.tokenizer, "paper", window, windows)


def compare(folder: str, device: str = "cuda:0", windows: int = 2, window: int = 1024) -> Comparison:
    """Load a checkpoint four ways, one of them on the CPU, and compare the results."""
    load = partial(HLWQModel.from_pretrained, folder)
    cpu, exact = load(device="cpu", dtype="float32"), load(device=device, dtype="float32", execution="coded")
    ours, theirs = answers(exact), answers(cpu)
    differences = {prompt: first_difference(ours[prompt], theirs[prompt]) for prompt in theirs}
    text = windows_for(cpu, windows, window)
    values = tuple(perplexity(score(m.model, text)).value for m in (cpu, exact))
    ids = text.ids[0, :NUM_READ]
    expected = log_probabilities(cpu.model, ids, NUM_READ)
    klds = [
        divergences(load(device=device, dtype="bfloat16", execution=how).model, expected, ids)
        for how in ("coded", "dense")
    ]
    different = {prompt: at for prompt, at in differences.items() if at is not None}
    return Comparison(folder, different, (values[0], values[1]), klds[0], klds[1])


def row(comparison: Comparison) -> str:
    klds = " | ".join(f"{comparison.coded[s]:.2e} / {comparison.dense[s]:.2e}" for s in comparison.coded)
    answered = "the same" if not comparison.different else f"{len(comparison.different)} differ"
    cpu, gpu = comparison.perplexities
    return f"| {comparison.folder} | {answered} | {cpu:.4f} | {gpu:.4f} | {comparison.change:.1e} | {klds} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", help="quantized checkpoints")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--window", type=int, default=1024)
    args = parser.parse_args()
    steps = " | ".join(f"KLD of codes / decoded, bf16, {s} at a time" for s in STEPS)
    print(f"| checkpoint | {NEW_TOKENS} tokens | PPL on the CPU | PPL as codes | change | {steps} |")
    print("|---" * (5 + len(STEPS)) + "|")
    failures = []
    for folder in args.folders:
        comparison = compare(folder, args.device, args.windows, args.window)
        print(row(comparison), flush=True)
        failures += [f"{folder}: {failure}." for failure in comparison.failures]
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    main()
