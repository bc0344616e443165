"""What a call of `generate` asks for, where the static decoder can do it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    StoppingCriteriaList,
    StopStringCriteria,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ..transformers_private import GenerationMode, generation_config, logits_processors

_PROCESSORS_OF_SCORES = (
    MinPLogitsWarper, SuppressTokensLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper,
)  # fmt: skip
"""Processors that read the scores only, and not the tokens before them."""


@dataclass(frozen=True)
class DecodeRequest:
    """One batch of prompts with their mask, and how to continue them.

    Attributes:
        inputs: of the model; `input_ids` and `attention_mask` are (batch, tokens).
        processors: applied to scores (batch, vocabulary).
        do_sample: sample from the scores, instead of taking the best token.
        max_new_tokens: length of the longest answer.
        eos: int64 (any,) on the CPU, tokens that end an answer.
        pad: token that fills shorter answers.
        criteria: further stopping criteria.
    """

    inputs: dict[str, Any]
    processors: LogitsProcessorList
    do_sample: bool
    max_new_tokens: int
    eos: torch.Tensor
    pad: int
    criteria: StoppingCriteriaList

    @classmethod
    def of(cls, model: Any, criteria: Any, options: dict[str, Any]) -> DecodeRequest | None:
        """Read the options of `generate`; None if they ask for what the static decoder does not do."""
        stops, tokenizer = options.pop("stop_strings", None), options.pop("tokenizer", None)
        config, inputs = generation_config(model, options)
        ids = inputs.get("input_ids")
        own = {"past_key_values", "cache", "inputs_embeds"} & inputs.keys()
        if not _is_plain(config) or own or ids is None or not ids.numel() or "attention_mask" not in inputs:
            return None
        processors = logits_processors(model, config, ids.shape[1], model.device)
        if not all(isinstance(p, _PROCESSORS_OF_SCORES) for p in processors):
            return None
        criteria = StoppingCriteriaList(criteria or [])
        if stops:
            criteria.append(StopStringCriteria(tokenizer, stops))
        eos = torch.tensor([] if config.eos_token_id is None else config.eos_token_id, dtype=torch.int64).reshape(-1)
        pad = config.pad_token_id if config.pad_token_id is not None else int((*eos, 0)[0])
        return cls(inputs, processors, config.do_sample, config.max_new_tokens, eos, pad, criteria)


def _is_plain(config: Any) -> bool:
    """Return whether each prompt gets one sequence, decoded token by token, and only its ids are returned."""
    return (
        config.get_generation_mode() in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
        and config.num_return_sequences == 1
        and config.max_new_tokens is not None
        and config.use_cache
        and not config.return_dict_in_generate
        and config.stop_strings is None
        and config.cache_implementation is None
        and config.max_time is None
        and config.prefill_chunk_size is None
    )
