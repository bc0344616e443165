"""Check that a coded checkpoint of each model type answers as the model that holds the decoded weights.

    python scripts/checks/families.py [--types NAME...] [--sample N] [--jobs N] [--out NAME]

For each class of transformers' causal, image-text, seq2seq, masked and base auto classes: a tiny model with random
weights is saved in bf16, quantized with 6 bits, verified, exported to bf16, and loaded by the class itself: the codes
twice, the exported weights once. Outputs are compared in float32, weights where the coded model shows them, and a few
generated tokens. Verdicts:

    equal          the outputs differ by at most 1e-5 of the largest
    refused: ...   quantize refused, before any work
    WRONG: ...     the checkpoint loads without an error, and the answers are others
    error: ...     a step failed

A model that transformers cannot build, save, load and run by itself is not tried; the result names it and the reason.
--out writes NAME.json and NAME.md. Exits with 1 if anything is WRONG or an error.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import shlex
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils._pytree import tree_leaves

import hlwq_cli
from hlwq_cli.checkpoint import Manifest, export, load_recipe, open_coded, quantize, verify
from hlwq_cli.errors import HlwqError
from scripts.checks.tiny_inputs import as_dtype, candidates
from scripts.checks.tiny_models import Family, NotBuiltError, families, fill, first_line, model_class, tiny_configs

BITS = 6
LARGEST_DIFFERENCE = 1e-5
BF16_ROUNDING = 0.05
"""A smaller difference in bf16 can be rounding. It is decided in float32, with weights exported to float32."""
LARGEST_WEIGHT_ERROR = 0.08
"""Relative error of a matrix after 6 bits. Gaussian weights have .02; another matrix in its place has 1.4."""
SECONDS_PER_TYPE = 300
MEMORY_BYTES = 8 * 2**30
NEW_TOKENS = 4
EXPORTS = {torch.bfloat16: "bf16", torch.float32: "f32"}
DTYPES = tuple(EXPORTS)

Tensors = list[torch.Tensor]


class NotRunError(Exception):
    """transformers cannot build, save, load or run the original."""


@dataclass(frozen=True)
class Row:
    """What became of one class.

    Attributes:
        family: the class.
        verdict: see the top of this file.
        dtype: in which the models ran.
        coded_share: coded weights over the weights of all matrices, embeddings and heads included.
        kept: name of the largest kept matrix that is neither embeddings nor a head.
        kept_reason: why it is kept.
        loads: whether the coded checkpoint loads.
        difference: largest difference of an output from the exported model's, over the largest output.
        generates: "yes", "no", or "-" where the original does not.
        seconds: what all steps took.
    """

    family: Family
    verdict: str
    dtype: str = ""
    coded_share: float | None = None
    kept: str = ""
    kept_reason: str = ""
    loads: bool = False
    difference: float | None = None
    generates: str = "-"
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        """Return whether this is neither equal nor refused."""
        return self.verdict.startswith(("WRONG", "error"))


@dataclass
class Sweep:
    """The rows, and what was not tried, with the reason."""

    rows: list[Row] = field(default_factory=list)
    skipped: list[tuple[Family, str]] = field(default_factory=list)


def run(model: Any, inputs: dict[str, torch.Tensor]) -> Tensors:
    """Return all tensors of a model's output, by position."""
    torch.manual_seed(0)
    with torch.inference_mode():
        out = model(**as_dtype(inputs, model.dtype))
    values = out.to_tuple() if hasattr(out, "to_tuple") else out
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def generate(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return a few greedy tokens."""
    torch.manual_seed(0)
    given = {name: value for name, value in inputs.items() if not name.startswith("decoder_")}
    if "input_ids" in given:
        given["attention_mask"] = torch.ones_like(given["input_ids"])
    settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    out = model.generate(**as_dtype(given, model.dtype), **settings)
    tokens: torch.Tensor = out if isinstance(out, torch.Tensor) else out.sequences
    return tokens


def relative_difference(ours: Tensors, theirs: Tensors) -> float:
    """Return the largest difference over the largest value, in float32; infinite where shapes or NaNs differ."""
    if len(ours) != len(theirs):
        return float("inf")
    largest = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape:
            return float("inf")
        x, y = a.detach().double(), b.detach().double()
        finite = y.isfinite()
        if not torch.equal(x.isfinite(), finite) or not torch.equal(x[~finite].isnan(), y[~finite].isnan()):
            return float("inf")
        if finite.any():
            x, y = x[finite], y[finite]
            largest = max(largest, float((x - y).abs().max() / y.abs().max().clamp_min(1e-30)))
    return largest


@dataclass
class Original:
    """A model as transformers saved it, and how it runs."""

    cls: Any
    source: Path
    dtype: torch.dtype
    model: Any
    inputs: dict[str, torch.Tensor]
    generates: bool

    def as_float32(self) -> Original:
        """Return the same model in float32."""
        model = self.cls.from_pretrained(str(self.source), dtype=torch.float32).eval()
        return replace(self, dtype=torch.float32, model=model)

    def load(self, folder: Path) -> Any:
        """Load a checkpoint by the class itself."""
        return self.cls.from_pretrained(str(folder), dtype=self.dtype).eval()


def make_original(family: Family, source: Path, dtypes: tuple[torch.dtype, ...] = DTYPES) -> Original:
    """Build a tiny model, save it, and find the first of some types in which it runs.

    Raises:
        NotRunError: transformers fails to build, save, load or run it, or does not load what it saved.
    """
    reason = ""
    try:
        for config in tiny_configs(family):
            try:
                return save_original(family, config, source, dtypes)
            except NotRunError as error:
                reason = reason or str(error)
                shutil.rmtree(source, ignore_errors=True)
    except NotBuiltError as error:
        raise NotRunError(f"is not built: {error}") from error
    raise NotRunError(reason)


def save_original(family: Family, config: Any, source: Path, dtypes: tuple[torch.dtype, ...]) -> Original:
    """Save a model of one configuration, and find inputs that it takes; see `make_original`."""
    cls = model_class(family.class_name)
    try:
        torch.manual_seed(0)
        model = cls(config).eval()
        fill(model)
        model.to(torch.bfloat16).save_pretrained(source)
    except Exception as error:
        raise NotRunError(f"is not saved: {first_line(error)}") from error
    reason = ""
    for dtype in dtypes:
        try:
            loaded = cls.from_pretrained(str(source), dtype=dtype).eval()
        except Exception as error:
            raise NotRunError(f"transformers does not load what it saved: {first_line(error)}") from error
        if lost := first_lost(loaded, cls.from_pretrained(str(source), dtype=dtype)):
            raise NotRunError(f"transformers loads {lost} with other values every time")
        inputs, failure = find_inputs(loaded)
        if inputs is not None:
            return Original(cls, source, dtype, loaded, inputs, can_generate(loaded, inputs))
        reason = reason or failure
    raise NotRunError(f"does not run: {reason}")


def first_lost(first: Any, second: Any) -> str:
    """Return the first parameter that two loads fill with different values: it was not in what was saved."""
    found = dict(second.named_parameters())
    return next((name for name, value in first.named_parameters() if not torch.equal(found[name], value)), "")


def find_inputs(model: Any) -> tuple[dict[str, torch.Tensor] | None, str]:
    """Return inputs that a model takes and answers alike twice; else None and the first error."""
    failure = ""
    for inputs in candidates(model):
        try:
            first, second = run(model, inputs), run(model, inputs)
        except Exception as error:
            failure = failure or first_line(error)
            continue
        if first and relative_difference(first, second) == 0.0:
            return inputs, ""
        failure = failure or "two runs give different outputs"
    return None, failure or "no inputs are known"


def can_generate(model: Any, inputs: dict[str, torch.Tensor]) -> bool:
    """Return whether a model generates, and the same tokens twice."""
    try:
        return bool(model.can_generate()) and torch.equal(generate(model, inputs), generate(model, inputs))
    except Exception:
        return False


def shares(manifest: Manifest) -> tuple[float, str, str]:
    """Return the coded share of the matrices' weights, and the largest kept matrix of layers with its reason."""
    coded = sum(t.matrices * t.shape[-1] * t.shape[-2] for t in manifest.coded)
    kept = [(torch.Size(k.shape).numel(), k) for k in manifest.kept if len(k.shape) >= 2]
    total = coded + sum(weights for weights, _ in kept)
    layers = [(weights, k) for weights, k in kept if k.role not in ("embedding", "embeddings", "head")]
    largest = max(layers, key=lambda entry: entry[0], default=(0, None))[1]
    share = coded / total if total else 0.0
    return (share, largest.name, largest.reason) if largest is not None else (share, "", "")


def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Return whether two tensors are equal once rounded to bf16, which is all that an export holds."""
    return torch.equal(ours.detach().to(torch.bfloat16), theirs.detach().to(torch.bfloat16))


def other_weight(coded: Any, plain: Any) -> str:
    """Return the first parameter of which the coded model shows other values than the exported one."""
    for name, parameter in plain.named_parameters():
        path, _, last = name.rpartition(".")
        try:
            value = getattr(coded.get_submodule(path), last)
        except AttributeError:
            continue
        if not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
            continue
        if not (same(value, parameter) or (value.ndim > 1 and same(value.mT, parameter))):
            return str(name)
    return ""


def far_weight(original: Any, plain: Any) -> str:
    """Return the first parameter that is further from the original's than coding accounts for."""
    found = dict(plain.named_parameters())
    for name, parameter in original.named_parameters():
        if name not in found:
            return str(name)
        expected = parameter.detach().double()
        error = (found[name].detach().double() - expected).norm() / expected.norm().clamp_min(1e-30)
        if not error <= LARGEST_WEIGHT_ERROR:
            return str(name)
    return ""


def compare(row: Row, original: Original, coded: Path, plain: Path) -> Row:
    """Load the codes twice and the exported weights once, and compare them."""
    try:
        twin = original.load(plain)
    except Exception as error:
        return replace(row, verdict=f"error: the exported checkpoint does not load: {first_line(error)}")
    try:
        model, again = original.load(coded), original.load(coded)
    except Exception as error:
        return replace(row, verdict=f"error: does not load: {first_line(error)}")
    row = replace(row, loads=True)
    try:
        expected, found = run(twin, original.inputs), run(model, original.inputs)
        other = run(again, original.inputs)
    except Exception as error:
        return replace(row, verdict=f"error: does not run: {first_line(error)}")
    row = replace(row, difference=relative_difference(found, expected))
    assert row.difference is not None
    if not row.difference <= LARGEST_DIFFERENCE:
        name = other_weight(model, twin)
        where = f"; {name} differs" if name else ""
        return replace(row, verdict=f"WRONG: outputs differ by {row.difference:.2g}{where}")
    if relative_difference(other, found) > LARGEST_DIFFERENCE:
        return replace(row, verdict="WRONG: loaded again, the outputs are others")
    if name := other_weight(model, twin):
        return replace(row, verdict=f"WRONG: {name} differs from the exported weight")
    if name := far_weight(original.model, twin):
        return replace(row, verdict=f"WRONG: exported {name} is far from the original")
    return compare_generated(row, original, model, twin)


def compare_generated(row: Row, original: Original, model: Any, twin: Any) -> Row:
    """Compare generated tokens, where the original generates."""
    if not original.generates:
        return replace(row, verdict="equal")
    try:
        same = torch.equal(generate(model, original.inputs), generate(twin, original.inputs))
    except Exception as error:
        return replace(row, generates="no", verdict=f"error: does not generate: {first_line(error)}")
    if not same:
        return replace(row, generates="no", verdict="WRONG: generates other tokens")
    return replace(row, generates="yes", verdict="equal")


def check_family(
    family: Family,
    folder: Path,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
    damage: Callable[[Path], None] | None = None,
) -> Row:
    """Take one class through all steps.

    Args:
        family: the class.
        folder: an empty one, for the checkpoints.
        dtypes: to run in, tried in turn.
        damage: changes the coded checkpoint before it is loaded, to show that this check finds it.

    Raises:
        NotRunError: transformers cannot run the original.
    """
    begin = time.monotonic()
    original = make_original(family, folder / "source", dtypes)
    row = steps(Row(family, "error", dtype=EXPORTS[original.dtype]), original, folder, damage)
    if is_rounding(row) and torch.float32 in dtypes:
        for name in ("coded", "plain"):
            shutil.rmtree(folder / name)
        row = steps(replace(row, dtype="f32"), original.as_float32(), folder, damage)
    return replace(row, seconds=round(time.monotonic() - begin, 1))


def is_rounding(row: Row) -> bool:
    """Return whether a difference is so small that rounding to bf16 explains it."""
    small = row.difference is not None and LARGEST_DIFFERENCE < row.difference < BF16_ROUNDING
    return small and row.dtype == "bf16" and row.verdict.startswith("WRONG")


def steps(row: Row, original: Original, folder: Path, damage: Callable[[Path], None] | None) -> Row:
    """Quantize, verify, export and compare."""
    coded, plain = folder / "coded", folder / "plain"
    try:
        quantize(str(original.source), coded, load_recipe(bits=BITS), threads=1)
    except HlwqError as error:
        if coded.exists():
            return replace(row, verdict=f"error: refused after work began: {error.what}")
        return replace(row, verdict=f"refused: {error.what} (exit {error.exit_code})")
    except Exception as error:
        return replace(row, verdict=f"error: quantize: {first_line(error)}")
    try:
        with closing(open_coded(coded)) as checkpoint:
            share, kept, reason = shares(checkpoint.manifest)
            row = replace(row, coded_share=share, kept=kept, kept_reason=reason)
            problems = verify(checkpoint).problems
        if problems:
            return replace(row, verdict=f"error: verify: {problems[0]}")
        export(coded, plain, EXPORTS[original.dtype])
    except Exception as error:
        return replace(row, verdict=f"error: verify or export: {first_line(error)}")
    if damage is not None:
        damage(coded)
    return compare(row, original, coded, plain)


def work(family: Family, folder: str, connection: Connection) -> None:
    """Check one class in a process of its own; the row, or the reason for having none, goes through `connection`."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  of this process only
    try:
        connection.send(check_family(family, Path(folder)))
    except NotRunError as error:
        connection.send(str(error))
    except BaseException as error:
        connection.send(Row(family, f"error: {first_line(error)}"))


@dataclass
class Job:
    """A running process."""

    family: Family
    process: Any
    connection: Connection
    folder: str
    deadline: float

    def end(self, answer: Row | str) -> Row | str:
        """Stop the process and remove its folder."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.connection.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        return answer


def start(family: Family, seconds: float) -> Job:
    """Start a process that checks one class."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    folder = tempfile.mkdtemp(prefix="hlwq-family-", dir=memory)
    process = context.Process(target=work, args=(family, folder, theirs), daemon=True)
    process.start()
    theirs.close()
    return Job(family, process, ours, folder, time.monotonic() + seconds)


def collect(job: Job) -> Row | str | None:
    """Return a job's answer once there is one; None while it runs."""
    if job.connection.poll():
        try:
            answer: Row | str = job.connection.recv()
        except EOFError:
            job.process.join()
            answer = Row(job.family, f"error: the process ended with {job.process.exitcode}")
        return job.end(answer)
    if time.monotonic() > job.deadline:
        return job.end(Row(job.family, "error: the time limit was reached"))
    return None


def sweep(chosen: Iterable[Family], jobs: int, seconds: float = SECONDS_PER_TYPE) -> Iterator[tuple[Family, Row | str]]:
    """Yield a row for each class, or the reason for having none, as they end."""
    waiting, running = list(chosen), []
    while waiting or running:
        while waiting and len(running) < jobs:
            running.append(start(waiting.pop(0), seconds))
        wait([job.connection for job in running], timeout=1)
        for job in list(running):
            answer = collect(job)
            if answer is not None:
                running.remove(job)
                yield job.family, answer


def choose(types: list[str], sample: int | None) -> list[Family]:
    """Return the classes of some model types, or of all; of these, `sample` in equal steps."""
    chosen = [family for family in families() if not types or family.model_type in types]
    if unknown := set(types) - {family.model_type for family in chosen}:
        sys.exit(f"No auto class lists {', '.join(sorted(unknown))}.")
    if sample is None or sample >= len(chosen):
        return chosen
    return [chosen[i * len(chosen) // sample] for i in range(sample)]


def table(rows: list[Row]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield "| model type | class | auto class | coded | largest kept in layers | difference | generates | verdict |"
    yield "|---" * 8 + "|"
    for row in sorted(rows, key=lambda r: (not r.failed, r.family.model_type, r.family.class_name)):
        share = "-" if row.coded_share is None else f"{row.coded_share:.0%}"
        kept = f"{row.kept}: {row.kept_reason}" if row.kept else "-"
        difference = "-" if row.difference is None else f"{row.difference:.1g}"
        family = row.family
        cells = (family.model_type, family.class_name, family.auto_class, share, kept, difference, row.generates)
        yield "| " + " | ".join(map(cell, [*cells, row.verdict])) + " |"


def cell(text: str) -> str:
    """Return a text that fits a cell of a Markdown table."""
    return text.replace("|", "/").replace("<", "&lt;")


def page(result: Sweep, command: str) -> str:
    """Return docs/families.md."""
    counts = Counter(row.verdict.partition(":")[0] for row in result.rows)
    counted = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}, hlwq {hlwq_cli.__version__}"
    head = [
        "# Model families",
        "",
        f"Made by `{command}` on {date.today().isoformat()}.",
        f"Versions: {versions}. Machine: {platform.machine()}, CPU.",
        "",
        f"{len(result.rows)} classes were tried: {counted}.",
        "Each is a tiny model with random weights that was quantized with 6 bits.",
        "It was verified, exported to bf16, and loaded by its class: the codes twice, the exported weights once.",
        "",
        "- `coded`: the share of the weights in matrices, embeddings and heads included. Tiny models have large",
        "  embeddings for their size: the share of a real model is larger.",
        "- `largest kept in layers`: the largest matrix that is kept and is neither embeddings nor a head.",
        "- `difference`: of the outputs from those of the exported model, over the largest output.",
        "- `generates`: the same tokens as the exported model. `-`: the original does not generate.",
        "- `verdict`: `equal`, or `refused` by `hlwq quantize` before any work, with the reason.",
        "",
    ]
    tail = ["", "## Not tried", "", "transformers alone does not build, save, load or run these here.", ""]
    tail += ["| model type | class | reason |", "|---" * 3 + "|"]
    skipped = sorted(result.skipped, key=lambda entry: (entry[0].model_type, entry[0].class_name))
    tail += [f"| {f.model_type} | {f.class_name} | {cell(reason)} |" for f, reason in skipped]
    return "\n".join([*head, *table(result.rows), *(tail if skipped else [])]) + "\n"


def save(result: Sweep, out: Path, command: str) -> None:
    """Write the result as JSON and as a page."""
    document = {
        "rows": [{**asdict(row), **asdict(row.family), "family": None} for row in result.rows],
        "skipped": [{**asdict(family), "reason": reason} for family, reason in result.skipped],
    }
    out.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    out.with_suffix(".md").write_text(page(result, command))


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
    parser.add_argument("--out", type=Path, metavar="NAME", help="write NAME.json and NAME.md")
    args = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    warm_up()
    result, command = Sweep(), shlex.join(["python", "scripts/checks/families.py", *sys.argv[1:]])
    for family, answer in sweep(choose(args.types, args.sample), args.jobs):
        if isinstance(answer, Row):
            result.rows.append(answer)
        else:
            result.skipped.append((family, answer))
        said = answer.verdict if isinstance(answer, Row) else f"not tried: {answer}"
        print(f"{family.model_type} {family.class_name}: {said}", flush=True)
        if args.out:
            save(result, args.out, command)
    if any(row.failed for row in result.rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
