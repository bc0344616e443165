"""What the fuzzer calls, each with an oracle: an input is refused by an HlwqError, or the result is right."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hlwq_cli.checkpoint import Recipe, inspect, load_recipe, make_plan, open_coded, open_source, quantize, verify
from hlwq_cli.checkpoint.format import MANIFEST, model_card
from hlwq_cli.errors import GateMissedError
from scripts.checks.mutations import (
    dump,
    mutate_bytes,
    mutate_document,
    mutate_folder,
    mutate_safetensors,
    mutate_text,
)

CONFIG = {"model_type": "llama", "tie_word_embeddings": False, "num_hidden_layers": 2, "vocab_size": 40}
CARD = "---\nlicense: mit\nlanguage: [en, de]\ntags: [a]\ndate: 2026-01-01\n---\n\n# A card\n"
TOKENIZER = {"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}
RECIPE = {
    "scheme": {"block_size": 64, "scale": "log8", "search": True},
    "bits": {"attention": "bits", "mlp": "bits+1", "head": "keep", "linear": 4},
}
_PLANNED = 0.1  # of weight files and indexes; a plan takes ten times as long as reading them
WIDTH, INDEX, WEIGHTS = 64, "model.safetensors.index.json", "model.safetensors"


class WrongResult(Exception):
    """An input was accepted, and the result is wrong."""


@dataclass(frozen=True)
class Originals:
    """Valid inputs, written once.

    Attributes:
        work: an empty folder, where each input is written as the folder `case`.
        source: a checkpoint of one file.
        shards: the same in two files, with an index.
        result: `source`, quantized.
        secret: a file outside, whose content must not get into a result.
        recipe: for `source`.
    """

    work: Path
    source: Path
    shards: Path
    result: Path
    secret: Path
    recipe: Recipe

    @classmethod
    def make(cls, folder: Path) -> Originals:
        """Write the inputs to a folder."""
        tensors = _tensors()
        names = sorted(tensors)
        for place, parts in (("source", [names]), ("shards", [names[:3], names[3:]])):
            (folder / place).mkdir(parents=True)
            _write_sidecar_files(folder / place)
            files = [WEIGHTS] if len(parts) == 1 else [f"model-0000{i + 1}-of-00002.safetensors" for i in range(2)]
            for file, part in zip(files, parts, strict=True):
                save_file({n: tensors[n] for n in part}, folder / place / file, {"format": "pt"})
            if len(parts) > 1:
                weight_map = {n: file for file, part in zip(files, parts, strict=True) for n in part}
                (folder / place / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        (folder / "secret").write_bytes(b"SECRET " * 100)
        (folder / "work").mkdir()
        recipe = load_recipe()
        quantize(str(folder / "source"), folder / "result", recipe, threads=1)
        return cls(*(folder / n for n in ("work", "source", "shards", "result", "secret")), recipe)

    def copy(self, original: Path) -> Path:
        """Return a copy of a folder that an input may change."""
        return Path(shutil.copytree(original, self.work / "case"))


Target = Callable[[random.Random, Originals], None]


def header(rng: random.Random, at: Originals) -> None:
    """A file of weights: what is accepted must be what the safetensors library reads."""
    case = at.copy(at.source)
    path = case / WEIGHTS
    path.write_bytes(mutate_safetensors(rng, path.read_bytes()))
    _plan(case, at.recipe if rng.random() < _PLANNED else None)


def index(rng: random.Random, at: Originals) -> None:
    """The index of several files."""
    case = at.copy(at.shards)
    _mutate_json(rng, case / INDEX)
    _plan(case, at.recipe if rng.random() < _PLANNED else None)


def config(rng: random.Random, at: Originals) -> None:
    """The configuration of a source."""
    case = at.copy(at.source)
    _mutate_json(rng, case / "config.json")
    _plan(case, at.recipe)


def manifest(rng: random.Random, at: Originals) -> None:
    """The manifest of a result."""
    case = at.copy(at.result)
    _mutate_json(rng, case / MANIFEST)
    report = inspect(case)
    figures = (report.bits_per_weight, report.kept_share, report.coded_bytes, report.kept_bytes, report.source_bytes)
    if not all(math.isfinite(f) and f >= 0 for f in figures):
        raise WrongResult(f"inspect reports {figures}")
    checkpoint = open_coded(case)
    model_card(case, checkpoint.config, checkpoint.manifest)


def result(rng: random.Random, at: Originals) -> None:
    """Any file of a result but its manifest: `verify` must not pass."""
    case = at.copy(at.result)
    listed = {f["name"] for f in json.loads((case / MANIFEST).read_bytes())["files"]}
    path = case / rng.choice(sorted(listed))
    before = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.7:
        _mutate_json(rng, path)
    elif path.suffix == ".safetensors":
        path.write_bytes(mutate_safetensors(rng, before))
    else:
        path.write_bytes(mutate_bytes(rng, before))
    if verify(open_coded(case)).problems:
        raise GateMissedError("The result does not verify.")
    if path.read_bytes() != before:
        raise WrongResult(f"verify passes although {path.name} was changed")


def card(rng: random.Random, at: Originals) -> None:
    """The card of a source, whose front matter a result inherits."""
    case = at.copy(at.result)
    (case / "README.source.md").write_bytes(_mutated_card(rng))
    checkpoint = open_coded(case)
    text = model_card(case, checkpoint.config, checkpoint.manifest)
    front = yaml.safe_load(text.split("---\n")[1])
    if front["library_name"] != "transformers" or "hlwq" not in front["tags"]:
        raise WrongResult(f"the card has lost its own front matter: {front}")


def recipe(rng: random.Random, at: Originals) -> None:
    """A recipe file."""
    case = at.work / "case"
    case.mkdir()
    text = yaml.safe_dump(mutate_document(rng, RECIPE)).encode("utf-8", "surrogatepass")
    (case / "mine.yaml").write_bytes(mutate_text(rng, text) if rng.random() < 0.5 else text)
    found = load_recipe(str(case / "mine.yaml"))
    json.dumps(found.as_json())
    if any(bits is not None and not 2 <= bits <= 8 for bits in found.bits.values()):
        raise WrongResult(f"a recipe with the widths {found.bits}")


def links(rng: random.Random, at: Originals) -> None:
    """Links and special files in a source or a result."""
    original = rng.choice((at.source, at.shards, at.result))
    case = at.copy(original)
    mutate_folder(rng, case, at.secret)
    if original == at.result:
        verify(open_coded(case))
    else:
        _run(case, at)


def run(rng: random.Random, at: Originals) -> None:
    """A whole run on a source with any of its files changed."""
    case = at.copy(rng.choice((at.source, at.shards)))
    path = case / rng.choice(sorted(p.name for p in case.iterdir()))
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        path.write_bytes(mutate_safetensors(rng, data))
    elif path.suffix == ".json":
        _mutate_json(rng, path)
    else:
        path.write_bytes(mutate_text(rng, data))
    _run(case, at)


TARGETS: dict[str, tuple[Target, int]] = {
    "header": (header, 30), "index": (index, 12), "config": (config, 10), "manifest": (manifest, 20),
    "result": (result, 10), "card": (card, 6), "recipe": (recipe, 6), "links": (links, 4), "run": (run, 2),
}  # fmt: skip
"""What is called with how many of a hundred inputs."""


def _plan(case: Path, wanted: Recipe | None) -> None:
    """Open a source, and plan a run if a recipe is given."""
    source = open_source(str(case))
    try:
        if wanted is not None:
            make_plan(source, wanted)
        for file in sorted({info.file for info in source.tensors.values()}):
            _compare(case / file, {n: i.shape for n, i in source.tensors.items() if i.file == file})
    finally:
        source.close()


def _compare(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Hold the tensors of a file against those that the safetensors library reads."""
    try:
        with safe_open(path, "pt") as file:
            stored = {n: tuple(file.get_slice(n).get_shape()) for n in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise WrongResult(f"hlwq reads a file that safetensors refuses: {error}") from error
    wrong = {n: shape for n, shape in shapes.items() if stored.get(n) != shape}
    if wrong:
        raise WrongResult(f"other tensors than in safetensors: {wrong}")


def _run(case: Path, at: Originals) -> None:
    out = at.work / "out"
    quantize(str(case), out, at.recipe, threads=1, max_shard_bytes=20_000)
    problems = verify(open_coded(out)).problems
    if problems:
        raise WrongResult(f"a finished run does not verify: {problems}")
    for path in out.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise WrongResult(f"{path.name} in the result is not a regular file")
        if path.is_file() and b"SECRET" in path.read_bytes() and not _is_copy(case, path.relative_to(out)):
            raise WrongResult(f"{path.name} holds the content of a file outside the source")


def _is_copy(case: Path, name: Path) -> bool:
    """Whether the file of the source itself holds the content, not what a link leads to; a hard link is a file."""
    path = case / ("README.md" if name.name == "README.source.md" else name)
    return path.is_file() and not path.is_symlink()


def _mutate_json(rng: random.Random, path: Path) -> None:
    path.write_bytes(dump(rng, mutate_document(rng, json.loads(path.read_bytes()))))


def _mutated_card(rng: random.Random) -> bytes:
    front = yaml.safe_load(CARD.split("---\n")[1])
    if rng.random() < 0.5:
        with suppress(yaml.YAMLError, ValueError):
            text = yaml.safe_dump(mutate_document(rng, front)).encode("utf-8", "surrogatepass")
            return b"---\n" + text + b"---\n" + rng.choice((b"", b"# Text\n", b"\n" * 150_000))
    return mutate_text(rng, CARD.encode())


def _tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (40, WIDTH), "lm_head.weight": (40, WIDTH)}
    for i in range(2):
        shapes[f"model.layers.{i}.self_attn.q_proj.weight"] = (WIDTH, WIDTH)
        shapes[f"model.layers.{i}.input_layernorm.weight"] = (WIDTH,)
    return {n: (torch.randn(s, generator=generator) * 0.05).bfloat16() for n, s in shapes.items()}


def _write_sidecar_files(folder: Path) -> None:
    documents = {"config.json": CONFIG, "tokenizer.json": TOKENIZER, "tokenizer_config.json": {"model_max_length": 128}}
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document))
    (folder / "README.md").write_text(CARD)


def readable(folder: Path) -> None:
    """Give back the permissions that an input took, so that its folder can be removed."""
    for path in folder.rglob("*"):
        if not path.is_symlink() and not os.access(path, os.R_OK):
            path.chmod(0o644)
