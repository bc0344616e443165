"""Pictures with captions for models that see, so that their vision towers are calibrated too."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...errors import HlwqError
from ...samples import calibration_file
from ..chat.conversation import Turn
from ..chat.template import as_chat, template_owner
from .tokens import CalibrationTokens

_BATCH = 8
"""Pictures of one forward pass."""


def with_bundled_pictures(tokens: CalibrationTokens) -> CalibrationTokens:
    """Return the tokens with the bundled calibration pictures, which `hlwq bench` never measures on."""
    document = json.loads(calibration_file("captions.json").read_text())
    captions: dict[str, str] = document["captions"]
    pixels = [np.array(Image.open(calibration_file(name)).convert("RGB")) for name in captions]
    stacked = torch.from_numpy(np.stack(pixels))
    return replace(tokens, pictures=stacked, captions=tuple(captions.values()), question=document["question"])


def picture_inputs(tokens: CalibrationTokens, processor: Any, forward_names: set[str]) -> list[dict[str, torch.Tensor]]:
    """Return pictures and captions as inputs of forward passes, a few pictures each.

    Args:
        tokens: with pictures.
        processor: of the model.
        forward_names: names of the inputs that the model takes.

    Raises:
        HlwqError: the processor fails.
    """
    texts = [_prompt(processor, tokens.question, caption) for caption in tokens.captions]
    groups: dict[int, list[int]] = defaultdict(list)
    for at, text in enumerate(texts):  # without padding: its tokens would count as inputs
        groups[_process(processor, [text], tokens.pictures[at : at + 1])["input_ids"].shape[1]].append(at)
    found = []
    for members in groups.values():
        for first in range(0, len(members), _BATCH):
            part = members[first : first + _BATCH]
            inputs = _process(processor, [texts[at] for at in part], tokens.pictures[part])
            kept = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
            found.append({name: value for name, value in kept.items() if name in forward_names})
    return found


def _prompt(processor: Any, question: str, caption: str) -> str:
    """Return a chat about one picture; for a model without a chat template, the picture and its caption."""
    if template_owner(processor) is not None:
        shown = Turn("user", question, [Image.new("RGB", (1, 1))])
        return as_chat(processor, [shown], None, True) + caption
    token = getattr(processor, "image_token", None)
    if not isinstance(token, str):
        raise HlwqError("The processor of this model has no token for pictures.")
    return f"{token}{caption}"


def _process(processor: Any, texts: Sequence[str], pictures: torch.Tensor) -> Mapping[str, Any]:
    images = [[Image.fromarray(picture.numpy())] for picture in pictures]
    try:
        made: Mapping[str, Any] = processor(
            text=list(texts), images=images, return_tensors="pt", add_special_tokens=template_owner(processor) is None
        )
    except Exception as error:  # a processor may fail in any way
        said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise HlwqError(f"The processor of this model cannot read pictures: {said}.") from error
    return made
