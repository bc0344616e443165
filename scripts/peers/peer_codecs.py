"""Round trips of a weight through hlwq's codecs and those that users would otherwise pick. Used by compare.py.

Each function takes a float32 (rows, columns) weight and the name of its tensor. It returns the decoded weight and the
stored bytes, which include codes, scales, zero points and bases. Where a library quantizes bf16 modules, it gets bf16,
as its users give it, so its scales are as narrow as theirs and its output is rounded to bf16.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from hlwq_cli.codec import Scheme, decode, encode
from scripts.peers import ggml_codec

Decoded = tuple[torch.Tensor, int]
RoundTrip = Callable[[torch.Tensor, str], Decoded]
GGML = ("Q4_0", "Q4_K", "Q5_0", "Q5_K", "Q6_K", "Q8_0")
GROUP = 64


@dataclass(frozen=True)
class Peer:
    """A codec: its name in the table, and its round trip."""

    name: str
    roundtrip: RoundTrip


def hlwq(schemes: Mapping[str, Scheme], weight: torch.Tensor, name: str) -> Decoded:
    """Quantize as `hlwq quantize` does, with the scheme that the plan gives each tensor."""
    coded, _ = encode(weight, schemes[name], name)
    return decode(coded), coded.nbytes


def ggml(codec: str, weight: torch.Tensor, name: str) -> Decoded:
    decoded, bits = ggml_codec.roundtrip(weight.numpy(), codec)
    return torch.from_numpy(decoded), round(bits * weight.numel() / 8)


def _module(weight: torch.Tensor) -> torch.nn.Sequential:
    """Return a bf16 linear with this weight, for libraries that quantize modules."""
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = torch.nn.Parameter(weight.bfloat16(), requires_grad=False)
    return torch.nn.Sequential(linear)


def torchao_int4(weight: torch.Tensor, name: str) -> Decoded:
    """Asymmetric int4 in groups of 64. `Int4WeightOnlyConfig` packs for accelerators only; this one runs on the CPU.

    It holds each 4-bit code in a byte here; packed codes are counted.
    """
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup, quantize_
    from torchao.quantization.quant_primitives import MappingType

    module = _module(weight)
    quantize_(module, IntxWeightOnlyConfig(torch.int4, PerGroup(GROUP), MappingType.ASYMMETRIC))
    coded: Any = module[0].weight
    return coded.dequantize().float(), coded.qdata.numel() // 2 + coded.scale.nbytes + coded.zero_point.nbytes


def torchao_int8(weight: torch.Tensor, name: str) -> Decoded:
    """Symmetric int8 with a scale per row; the zero points are all zero and not counted."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    module = _module(weight)
    quantize_(module, Int8WeightOnlyConfig())
    coded: Any = module[0].weight
    return coded.dequantize().float(), coded.qdata.nbytes + coded.scale.nbytes


def quanto(width: int, weight: torch.Tensor, name: str) -> Decoded:
    """Quantize with `quantize(model, weights=...)` and `freeze`: qint4 in groups of at most 128, qint8 per row."""
    from optimum.quanto import freeze, qint4, qint8, quantize

    module = _module(weight)
    quantize(module, weights={4: qint4, 8: qint8}[width])
    freeze(module)
    coded: Any = module[0].weight
    if hasattr(coded, "_scale_shift"):  # packed for a CPU kernel; the same numbers
        coded = coded.weight_qbits_tensor()
    codes = getattr(coded._data, "_data", coded._data)
    stored = codes.nbytes + coded._scale.nbytes + (coded._shift.nbytes if hasattr(coded, "_shift") else 0)
    return coded.dequantize().detach().float(), stored


def nf4(double: bool, weight: torch.Tensor, name: str) -> Decoded:
    """bitsandbytes NF4 in blocks of 64: a float32 scale per block, or one byte with double quantization."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    codes, state = quantize_4bit(weight.bfloat16(), blocksize=GROUP, quant_type="nf4", compress_statistics=double)
    stored = codes.nbytes + state.absmax.nbytes + (state.state2.absmax.nbytes + 4 if double else 0)
    return dequantize_4bit(codes, state).float(), stored


def others() -> list[Peer]:
    """Return all codecs other than hlwq's."""
    found = [Peer(f"ggml {codec}", partial(ggml, codec)) for codec in GGML]
    found += [Peer(f"torchao int4, group {GROUP}", torchao_int4), Peer("torchao int8, per row", torchao_int8)]
    found += [Peer(f"quanto qint{width}", partial(quanto, width)) for width in (4, 8)]
    found += [Peer("NF4", partial(nf4, False)), Peer("NF4, double quantization", partial(nf4, True))]
    return found
