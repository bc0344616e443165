"""Check that a coded checkpoint of each model type answers as the model that holds the decoded weights.

    python scripts/checks/families.py [--types NAME...] [--sample N] [--jobs N] [--out NAME] [--resume]

For each class of transformers' causal, image-text, seq2seq, masked and base auto classes: a tiny model with random
weights is saved in bf16, quantized with 6 bits, verified, exported to bf16, and loaded by the class itself: the codes
twice, the exported weights once. Outputs are compared in float32, weights where the coded model shows them, and a few
generated tokens. Verdicts:

    equal          the outputs differ by at most 1e-5 of the largest
    refused: ...   quantize refused, before any work
    WRONG: ...     the checkpoint loads without an error, and the answers are others
    error: ...     a step failed

A model that transformers cannot build, save, load and run by itself is not tried; the result names it and the reason.
--out writes NAME.json and NAME.md. --resume reads NAME.json first and leaves out the classes that are equal or
refused there. Exits with 1 if anything is WRONG or an error.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import transformers

from scripts.checks.family.page import Sweep, load, save
from scripts.checks.family.steps import Row, check_family
from scripts.checks.family.sweep import SECONDS_PER_TYPE, sweep
from scripts.checks.family.tiny_models import Family, families


def choose(types: list[str], sample: int | None) -> list[Family]:
    """Return the classes of some model types, or of all; of these, `sample` in equal steps."""
    chosen = [family for family in families() if not types or family.model_type in types]
    if unknown := set(types) - {family.model_type for family in chosen}:
        sys.exit(f"No auto class lists {', '.join(sorted(unknown))}.")
    if sample is None or sample >= len(chosen):
        return chosen
    return [chosen[i * len(chosen) // sample] for i in range(sample)]


def warm_up() -> None:
    """Compile and import in this process what every process of the sweep needs."""
    with tempfile.TemporaryDirectory() as folder:
        check_family(Family("llama", "LlamaForCausalLM", "causal"), Path(folder))


def quiet() -> None:
    """Keep the libraries' warnings off the screen."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", default=[], metavar="NAME", help="model types; default: all")
    parser.add_argument("--sample", type=int, metavar="N", help="only N classes, in equal steps; the same every time")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="classes checked at once; default: 1")
    parser.add_argument("--seconds", type=float, default=SECONDS_PER_TYPE, metavar="N", help="time limit of a class")
    parser.add_argument("--out", type=Path, metavar="NAME", help="write NAME.json and NAME.md")
    parser.add_argument("--resume", action="store_true", help="keep what NAME.json says of classes that did not fail")
    args = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    warm_up()
    if args.resume and not args.out:
        parser.error("--resume needs --out")
    result = load(args.out) if args.resume else Sweep()
    command = shlex.join(["python", "scripts/checks/families.py", *sys.argv[1:]])
    for family, answer in sweep(result.without_done(choose(args.types, args.sample)), args.jobs, args.seconds):
        result.put(family, answer)
        said = answer.verdict if isinstance(answer, Row) else f"not tried: {answer}"
        print(f"{family.model_type} {family.class_name}: {said}", flush=True)
        if args.out:
            save(result, args.out, command)
    if any(row.failed for row in result.rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
