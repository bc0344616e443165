"""The bundled sample after quantize and export: perplexity and exact captions, at every width and for every recipe.

    python scripts/sample/measure.py [--windows 8] [--pictures 100]
    python scripts/sample/measure.py --calibrate own    # 4 and 3 bits of the default recipe, calibrated

Perplexity follows the `paper` protocol on the bundled addresses, paired with bf16. Captions of new pictures are greedy,
and correct only if every letter is. Runs the real command line; computes in float32 on the CPU. Prints a table.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from hlwq_cli.measure.perplexity import paired, perplexity, score
from hlwq_cli.measure.text import load_text
from hlwq_cli.measure.windows import Windows, make_windows
from hlwq_cli.runtime import HLWQModel
from scripts.sample.pictures import FRESH_SEED, draw

QUESTION = "What is in the picture?"
BATCH = 25
RECIPES = [
    *(("default", bits) for bits in (8, 6, 5, 4, 3)),
    *(("classic", bits) for bits in (8, 6, 5, 4, 3)),
]


def hlwq(*arguments: str) -> dict:
    command = [sys.executable, "-m", "hlwq_cli.main", *arguments, "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def exact_captions(model: HLWQModel, pictures: int) -> int:
    right = 0
    for first in range(0, pictures, BATCH):
        drawn = [draw(FRESH_SEED + i) for i in range(first, min(first + BATCH, pictures))]
        answers = model.generate([QUESTION] * len(drawn), [[p] for p, _ in drawn], max_new_tokens=48)
        right += sum(a.strip() == caption for a, (_, caption) in zip(answers, drawn, strict=True))
    return right


def measure(path: str, windows: Windows, pictures: int) -> tuple[torch.Tensor, int]:
    model = HLWQModel.from_pretrained(path, device="cpu", dtype="float32")
    return score(model.model, windows), exact_captions(model, pictures)


def coded_row(
    recipe: str, bits: int, calibrate: str | None, windows: Windows, pictures: int, reference: torch.Tensor
) -> str:
    options = [] if calibrate is None else ["--calibrate", calibrate]
    with tempfile.TemporaryDirectory() as folder:
        coded, plain = f"{folder}/coded", f"{folder}/plain"
        result = hlwq("quantize", "sample", coded, "--bits", str(bits), "--recipe", recipe, *options)
        hlwq("export", coded, plain)
        nlls, right = measure(plain, windows, pictures)
    p, d = perplexity(nlls), paired(nlls, reference)
    rise = f"{d.log_ratio:+.4f} ± {d.error:.4f}"
    name = Path(recipe).stem + ("" if calibrate is None else ", calibrated")
    width = f"{result['bits_per_weight']:.3f}"
    return f"| {name} | {bits} | {width} | {p.value:.2f} | {rise} | {right}/{pictures} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--calibrate", metavar="DATA", help="as of hlwq quantize; `own` is the model's own text")
    options = parser.parse_args()
    recipes = RECIPES if options.calibrate is None else [("default", 4), ("default", 3)]
    tokenizer = HLWQModel.from_pretrained("sample", device="cpu").tokenizer
    windows = make_windows(load_text("sample"), tokenizer, "paper", limit=options.windows)
    print(windows.protocol.line)
    print("\n| recipe | bits | bits/weight | PPL | ln PPL rise | exact captions |\n|---|---|---|---|---|---|")
    reference, right = measure("sample", windows, options.pictures)
    print(f"| bf16 | 16 | 16 | {perplexity(reference).value:.2f} | | {right}/{options.pictures} |", flush=True)
    for recipe, bits in recipes:
        row = coded_row(recipe, bits, options.calibrate, windows, options.pictures, reference)
        print(row, flush=True)


if __name__ == "__main__":
    main()
