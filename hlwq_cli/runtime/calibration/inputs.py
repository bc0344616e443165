"""What the model is run over: tokens and pictures, in portions that fit memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import torch

Inputs = Mapping[str, torch.Tensor]
"""Keyword arguments of a model's forward method, on the CPU."""
PASS_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Tokens of one forward pass, by the kind of device. A change changes the bytes of calibrated checkpoints."""
_PROBE_SEQUENCES, _PROBE_TOKENS = 1, 16


def token_inputs(
    sequences: Iterable[torch.Tensor], device_type: str, is_encoder_decoder: bool = False
) -> list[dict[str, torch.Tensor]]:
    """Divide sequences of tokens into the inputs of forward passes.

    Args:
        sequences: int64 (n, tokens) each; all sequences of one tensor have the same length.
        device_type: `cpu` or `cuda`.
        is_encoder_decoder: whether the model has a decoder that takes tokens of its own; it gets the same ones.
    """
    found = []
    for tokens in sequences:
        rows = max(1, PASS_TOKENS[device_type] // max(tokens.shape[1], 1))
        for first in range(0, len(tokens), rows):
            part = {"input_ids": tokens[first : first + rows].to(torch.int64)}
            if is_encoder_decoder:
                part["decoder_input_ids"] = part["input_ids"]
            found.append(part)
    return found


def probe_inputs(inputs: Inputs) -> dict[str, torch.Tensor]:
    """Return a small part of inputs. Inputs with more than tokens are returned whole: their parts belong together."""
    if any(tensor.dim() != 2 or tensor.is_floating_point() for tensor in inputs.values()):
        return dict(inputs)
    return {name: tensor[:_PROBE_SEQUENCES, :_PROBE_TOKENS] for name, tensor in inputs.items()}


def hash_inputs(inputs: Sequence[Inputs]) -> str:
    """Return a hash of all inputs and of how they are divided into passes."""
    digest = hashlib.sha256()
    for each in inputs:
        for name, tensor in sorted(each.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def token_count(inputs: Sequence[Inputs]) -> tuple[int, int]:
    """Return the number of tokens and of sequences."""
    ids = [each["input_ids"] for each in inputs if "input_ids" in each]
    return sum(t.numel() for t in ids), sum(len(t) for t in ids)
