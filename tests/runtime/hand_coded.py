"""Coded checkpoints written by hand, to load without a plan."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from hlwq_cli.codec import Scheme, decode, encode, lloyd_max

SCHEME = Scheme(6, 64, "log8", False)


def random_model(model_class: Any, config: Any) -> Any:
    """A model in float32 whose every parameter is random, so that one that is lost or swapped shows."""
    torch.manual_seed(0)
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.06)
    return model.eval()


def save_coded(
    model: Any,
    folder: Path,
    coded: Collection[str],
    transposed: Collection[str] = (),
    unused: Mapping[str, torch.Tensor] | None = None,
) -> Any:
    """Code parameters of a model, save it, and return the model with the decoded parameters in their places.

    Args:
        model: of transformers; its coded parameters are replaced by what they decode to.
        folder: to write the checkpoint to.
        coded: names of the parameters to code.
        transposed: those of them that their modules hold as (..., in, out).
        unused: tensors to store that the model does not take, and to list as unused.
    """
    parts: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name in coded:
            parameter = model.get_parameter(name)
            weight = parameter.mT.contiguous() if name in transposed else parameter.data
            code = encode(weight.flatten(0, -2), SCHEME)[0]
            value = decode(code).reshape(weight.shape)
            parameter.copy_(value.mT if name in transposed else value)
            path, _, last = name.rpartition(".")
            tail = "" if last == "weight" and weight.ndim == 2 else f"_{last}"
            lead = weight.shape[:-1]
            parts[f"{path}.codes{tail}"] = code.codes.reshape(*lead, -1)
            parts[f"{path}.scales{tail}"] = code.scales.reshape(*lead, -1)
            assert code.base is not None
            parts[f"{path}.base{tail}"] = code.base.reshape(lead)
    model.save_pretrained(folder, save_original_format=False)
    config = json.loads((folder / "config.json").read_text())
    settings: dict[str, Any] = {
        "quant_method": "hlwq",
        "format_version": 1,
        "block_size": SCHEME.block_size,
        "scale": SCHEME.scale,
        "codebooks": {str(SCHEME.bits): list(lloyd_max(SCHEME.bits))},
        "modules_to_not_convert": [],
    }
    settings |= {"transposed": sorted(transposed)} if transposed else {}
    settings |= {"unused": sorted(unused)} if unused else {}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    edit_tensors(folder, lambda tensors: [tensors.pop(name, None) for name in coded])
    edit_tensors(folder, lambda tensors: tensors.update({**parts, **(unused or {})}))
    return model


def edit_tensors(folder: Path, edit: Any) -> None:
    """Change the tensors of a checkpoint of one file by a function."""
    from safetensors.torch import load_file

    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
