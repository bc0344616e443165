"""Prompts as a model's inputs: token ids, masks and pixels, padded to one length."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import BatchEncoding

from ...errors import CorruptError, UsageError


class PromptEncoder:
    """Turns prompts into the inputs of one model.

    Attributes:
        pad: id of the token that fills shorter prompts and answers.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self._model, self._processor = model, processor
        self._tokenizer = getattr(processor, "tokenizer", processor)
        self._vocabulary = _vocabulary(model)
        self._taken = _taken_inputs(model)
        # an encoder reads from its first position on; other models continue the end of the prompt
        self._tokenizer.padding_side = "right" if model.config.is_encoder_decoder else "left"
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        pad = self._tokenizer.pad_token_id
        self._pads = pad is not None and (self._vocabulary is None or pad < self._vocabulary)
        self.pad: int = pad if self._pads else _other_pad(model)

    def encode(self, texts: Sequence[str], images: Sequence[Sequence[Any]], add_special_tokens: bool) -> Any:
        """Return the inputs of a batch on the CPU, without those that the model does not take; see `place`.

        Raises:
            UsageError: a prompt without tokens.
            CorruptError: a token that is not in the model's vocabulary.
        """
        inputs = self._inputs(texts, images, add_special_tokens)
        ids = inputs["input_ids"]
        if "attention_mask" not in inputs:
            inputs["attention_mask"] = ids.ne(self.pad).long() if len(texts) > 1 else torch.ones_like(ids)
        if not ids.numel() or not inputs["attention_mask"].any(dim=1).all():
            raise UsageError("The prompt is empty.", "Write something first.")
        self._check_vocabulary(int(ids.max()))
        for name in [name for name in inputs if self._taken is not None and name not in self._taken]:
            del inputs[name]
        return inputs

    def place(self, inputs: Any) -> Any:
        """Return inputs on the model's device, and those of floating point in its dtype."""
        inputs = inputs.to(self._model.device)
        for name, value in inputs.items():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                inputs[name] = value.to(self._model.dtype)
        return inputs

    def _inputs(self, texts: Sequence[str], images: Sequence[Sequence[Any]], add_special_tokens: bool) -> Any:
        if any(images):
            if len(texts) > 1 and not self._pads:
                raise UsageError("The tokenizer has no token to pad several prompts with.", "Give one at a time.")
            options: dict[str, Any] = {"images": [list(shown) for shown in images], "padding": len(texts) > 1}
        elif self._pads:
            options = {"padding": True}
        else:
            return self._padded(self._tokenizer(list(texts), add_special_tokens=add_special_tokens)["input_ids"])
        return self._processor(text=list(texts), return_tensors="pt", add_special_tokens=add_special_tokens, **options)

    def _padded(self, rows: Sequence[Sequence[int]]) -> BatchEncoding:
        """Return rows of ids as a batch, padded with a token that the tokenizer does not know as one for padding."""
        length = max((len(row) for row in rows), default=0)
        ids = torch.full((len(rows), length), self.pad)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            at = slice(0, len(row)) if self._tokenizer.padding_side == "right" else slice(length - len(row), length)
            ids[i, at], mask[i, at] = torch.tensor(row, dtype=torch.int64), 1
        return BatchEncoding({"input_ids": ids, "attention_mask": mask})

    def _check_vocabulary(self, largest: int) -> None:
        if self._vocabulary is not None and largest >= self._vocabulary:
            raise CorruptError(
                f"The tokenizer gives token {largest:,}, and the model has a vocabulary of {self._vocabulary:,}.",
                "Use the tokenizer that belongs to the model.",
            )


def _vocabulary(model: Any) -> int | None:
    try:
        size = getattr(model.get_input_embeddings(), "num_embeddings", None)
    except (AttributeError, NotImplementedError):
        return None
    return size if isinstance(size, int) else None


def _taken_inputs(model: Any) -> set[str] | None:
    """Return the names of the inputs that `generate` accepts for a model; None where a model does not say."""
    forward = getattr(type(model), "forward", None)
    if forward is None:
        return None
    taken = set(inspect.signature(forward).parameters) | {"input_ids", "attention_mask"}
    taken |= set(inspect.signature(type(model).prepare_inputs_for_generation).parameters)
    if model.config.is_encoder_decoder:
        encoder = model.get_encoder()
        taken |= set(inspect.signature(encoder.forward).parameters)
    return taken


def _other_pad(model: Any) -> int:
    """Return a token to pad with where the tokenizer has none: what the generation config names, else token 0."""
    config = model.generation_config
    for value in (config.pad_token_id, config.eos_token_id):
        first = value[0] if isinstance(value, list) and value else value
        if isinstance(first, int) and first >= 0:
            return first
    return 0
