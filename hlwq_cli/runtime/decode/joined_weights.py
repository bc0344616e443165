"""Coded linear layers that read the same input, as one weight, so that one launch multiplies by all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from hlwq_kernels.codes import QuantizedWeight

from ..modules.linear import HLWQLinear


def join_weights(linears: Sequence[nn.Module]) -> QuantizedWeight | None:
    """Join coded linear layers that read the same input into one weight; None if their formats differ.

    Each layer's buffers become views of the joined tensors, so that nothing is stored twice. This stays for good.
    """
    first = linears[0]
    if not all(isinstance(m, HLWQLinear) and m.dense_weight is None for m in linears):
        return None
    assert isinstance(first, HLWQLinear)
    if any(m.bits != first.bits or m.quant_format != first.quant_format for m in linears):
        return None
    whole = {}
    for name in first.quant_format.parts():
        tensors = [m.get_buffer(name) for m in linears]
        whole[name] = torch.cat(tensors)
        starts = [0]
        for tensor in tensors:
            starts.append(starts[-1] + len(tensor))
        for m, a, b in zip(linears, starts, starts[1:], strict=False):
            m.register_buffer(name, whole[name][a:b])
    return weight_of(first)._replace(codes=whole["codes"], scales=whole["scales"], base=whole.get("base"))


def weight_of(m: HLWQLinear) -> QuantizedWeight:
    """Return a linear layer's buffers as a kernel takes them."""
    codes = m.get_buffer("codes")
    centroids = m.quant_format.centroids(m.bits, codes.device)
    return QuantizedWeight(codes, m.get_buffer("scales"), m._buffers.get("base"), centroids, m.quant_format.block_size)
