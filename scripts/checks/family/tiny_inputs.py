"""Inputs that a tiny model accepts: found by trying the usual ones, from its signature and sizes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch

from scripts.checks.family.tiny_own_inputs import LENGTH, OWN_INPUTS, ROWS

PICTURE = "pixel_values"
SOUND_FRAMES = (64, 128, 3000)
SAMPLES = (2000, 16000)


def random(shape: tuple[int, ...], seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def token_ids(vocabulary: int, length: int = LENGTH, seed: int = 1) -> torch.Tensor:
    """Return ids (rows, length) that are no special tokens, int64."""
    high = max(6, min(250, vocabulary - 20))
    return torch.randint(5, high, (ROWS, length), generator=torch.Generator().manual_seed(seed))


def setting(config: Any, *names: str) -> Any:
    """Return the first of some settings that a configuration or one of its parts has."""
    parts = [getattr(config, name, None) for name in getattr(config, "sub_configs", None) or {}]
    for part in [config, *parts]:
        values = part.to_dict() if hasattr(part, "to_dict") else {}
        for name in names:
            if values.get(name) is not None:
                return values[name]
    return None


def sides(config: Any) -> tuple[int, int]:
    """Return height and width of a picture."""
    size = setting(config, "image_size", "img_size", "input_size")
    if isinstance(size, dict):
        size = list(size.values())
    if isinstance(size, list | tuple):
        return int(size[0]), int(size[-1])
    return (int(size), int(size)) if isinstance(size, int) else (64, 64)


def media(config: Any, name: str) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the shapes in which models take what is no text, by the input's name."""
    channels = setting(config, "num_channels", "in_channels", "in_chans", "num_image_channels")
    channels = channels if isinstance(channels, int) else 3
    if name.startswith(PICTURE):
        height, width = sides(config)
        yield {name: random((ROWS, channels, height, width))}
        yield {name: random((ROWS, setting(config, "num_frames") or 2, channels, height, width))}
        yield {name: random((ROWS, channels, 224, 224))}
        yield from patches(config, name, channels)
    elif name == "input_features":
        bins = setting(config, "num_mel_bins", "feature_size", "input_feat_per_channel", "n_mels", "mel_bins") or 80
        for frames in SOUND_FRAMES:
            yield {name: random((ROWS, bins, frames))}
            yield {name: random((ROWS, frames, bins))}
    elif name in ("input_values", "audio_values", "waveform"):
        for samples in SAMPLES:
            yield {name: random((ROWS, samples))}
            yield {name: random((ROWS, 1, samples))}
        bins = setting(config, "num_mel_bins", "num_channels") or 80
        yield {name: random((ROWS, setting(config, "max_length") or 64, bins))}
    elif name == "flattened_patches":
        patch = setting(config, "patch_size") or 16
        yield {name: random((ROWS, 16, 2 + channels * patch * patch)).abs()}
    elif name == "hidden_states":
        yield {name: random((ROWS, LENGTH, setting(config, "hidden_size", "d_model") or 128))}
        yield from patches(config, name, channels)


def patches(config: Any, name: str, channels: int) -> Iterator[dict[str, torch.Tensor]]:
    """Yield a picture cut into 4 x 4 patches, in the ways of Qwen-VL and Siglip 2."""
    patch, times = setting(config, "patch_size"), setting(config, "temporal_patch_size") or 1
    if isinstance(patch, int):
        values = random((16, channels * times * patch * patch))
        for grid in ("grid_thw", "image_grid_thw"):
            yield {name: values, grid: torch.tensor([[1, 4, 4]])}
            yield {name: random((16, channels, patch, patch)), grid: torch.tensor([[1, 4, 4]])}
        yield {
            name: values[None],
            "pixel_attention_mask": torch.ones(1, 16, dtype=torch.int64),
            "spatial_shapes": torch.tensor([[4, 4]]),
        }


def candidates(model: Any) -> Iterator[dict[str, torch.Tensor]]:
    """Yield inputs to try, the most likely ones first."""
    if own := OWN_INPUTS.get(type(model).__name__):
        yield own(model.config)
        return
    names = set(inspect.signature(model.forward).parameters)
    config, main = model.config, model.main_input_name
    main = main[0] if isinstance(main, list) else main
    vocabulary = setting(config, "vocab_size", "text_vocab_size") or 320
    vocabulary = vocabulary if isinstance(vocabulary, int) else 320
    text: dict[str, torch.Tensor] = {}
    if "input_ids" in names:
        text["input_ids"] = token_ids(vocabulary)
    if "qformer_input_ids" in names:
        text["qformer_input_ids"] = token_ids(vocabulary)
    if "bbox" in names:
        text["bbox"] = torch.zeros(ROWS, LENGTH, 4, dtype=torch.int64)
    decoder: dict[str, torch.Tensor] = {}
    if "decoder_input_ids" in names:
        decoder["decoder_input_ids"] = token_ids(vocabulary, 6, 2)
    others = [name for name in dict.fromkeys([main, *names]) if name not in ("input_ids", "decoder_input_ids")]
    found = [given for name in others if name in names or name == main for given in media(config, name)]
    if text and main == "input_ids":
        yield text | decoder
        yield text
    for given in found:
        accepted = {name: value for name, value in given.items() if name in names or name == main}
        yield decoder | accepted
        yield accepted
        if text:
            yield text | decoder | accepted
    if text and main != "input_ids":
        yield text | decoder
        yield text


def as_dtype(inputs: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the inputs with numbers in a type, and ids as they are."""
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
