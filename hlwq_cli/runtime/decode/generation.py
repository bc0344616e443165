"""What `model.generate` gives, by captured steps on a static cache where that fits, else by transformers itself."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator
from contextlib import closing
from typing import Any, Literal

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
from transformers.generation.configuration_utils import GenerationMode

from ..kv.position import StaticDecodeUnsupported
from .decoder import Decoder

Decoding = Literal["graph", "eager", "transformers"]

logger = logging.getLogger("hlwq")

LOOKAHEAD_STEPS = 2
"""Steps that a GPU is given before the host looks at the first one's tokens."""

_OF_SCORES = (
    MinPLogitsWarper, SuppressTokensLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper,
)  # fmt: skip
"""Processors that look at the scores only, and not at the tokens before."""


class Generation:
    """Answers of one model; its `generate` stands in for the model's own.

    Attributes:
        decoder: the static loop; None where the model or its device leaves it to transformers.
        fallback_reason: why the model does, on a GPU.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.decoder: Decoder | None = None
        self.fallback_reason = ""
        if model.device.type == "cuda":
            try:
                self.decoder = Decoder(model)
            except StaticDecodeUnsupported as error:
                self._leave_to_transformers(error)

    @property
    def decoding(self) -> Decoding:
        """How answers are decoded; whether steps can be captured is known after the first."""
        if self.decoder is None:
            return "transformers"
        return "graph" if self.decoder.graph_error is None else "eager"

    def generate(self, *, streamer: Any = None, stopping_criteria: Any = None, **options: Any) -> torch.Tensor:
        """Ids (batch, prompt and answer), as from `model.generate` with the same inputs and settings.

        Beams, penalties for tokens that were there before, and a cache of the caller's own are
        left to transformers. An answer asked for while another is being decoded waits for its end.
        """
        decoder = self.decoder
        loop = None if decoder is None else _Loop.fitting(decoder, streamer, stopping_criteria, dict(options))
        if loop is not None:
            try:
                with loop.decoder.lock:
                    return loop.run()
            except StaticDecodeUnsupported as error:
                self._leave_to_transformers(error)
        out: torch.Tensor = self.model.generate(**options, streamer=streamer, stopping_criteria=stopping_criteria)
        return out

    def _leave_to_transformers(self, reason: StaticDecodeUnsupported) -> None:
        self.decoder, self.fallback_reason = None, str(reason)
        logger.warning("Decoding by transformers' own loop, which is slower: %s.", reason)


class _Loop:
    """The tokens of one batch of answers, whose prompts came with their mask."""

    def __init__(self, decoder: Decoder, config: Any, inputs: dict[str, Any], processors: LogitsProcessorList) -> None:
        self.decoder, self.inputs, self.processors = decoder, inputs, processors
        self.sample: bool = config.do_sample
        self.limit: int = config.max_new_tokens
        eos = config.eos_token_id
        self.eos = torch.tensor([] if eos is None else eos, dtype=torch.int64).reshape(-1)
        self.pad: int = config.pad_token_id if config.pad_token_id is not None else int((*self.eos, 0)[0])
        self.lookahead = LOOKAHEAD_STEPS if decoder.device.type == "cuda" else 0
        self.streamer: Any = None
        self.criteria = StoppingCriteriaList()

    @classmethod
    def fitting(cls, decoder: Decoder, streamer: Any, criteria: Any, options: dict[str, Any]) -> _Loop | None:
        """The loop for what `generate` was asked for, or None where it is not for this loop."""
        stops, tokenizer = options.pop("stop_strings", None), options.pop("tokenizer", None)
        model = decoder.model
        config, inputs = model._prepare_generation_config(None, **options)
        inputs = {name: value for name, value in inputs.items() if value is not None}
        ids = inputs.get("input_ids")
        own = {"past_key_values", "cache", "inputs_embeds"} & inputs.keys()
        if not _is_plain(config) or own or ids is None or not ids.numel() or "attention_mask" not in inputs:
            return None
        model._prepare_special_tokens(config, True, device=decoder.device)
        processors = model._get_logits_processor(config, input_ids_seq_length=ids.shape[1], device=decoder.device)
        if not all(isinstance(p, _OF_SCORES) for p in processors):
            return None
        loop = cls(decoder, config, inputs, processors)
        loop.streamer = streamer
        loop.criteria = StoppingCriteriaList(criteria or [])
        if stops:
            loop.criteria.append(StopStringCriteria(tokenizer, stops))
        return loop

    def run(self) -> torch.Tensor:
        """Prompts and answers on the model's device, the shorter answers padded."""
        prompt: torch.Tensor = self.inputs["input_ids"]
        ids = prompt.cpu()
        logits = self.decoder.prefill(self.inputs, self.limit)
        if self.streamer is not None:
            self.streamer.put(ids)
        finished = torch.zeros(ids.shape[0], dtype=torch.bool)
        with closing(self._tokens(logits)) as tokens:
            for new in tokens:
                new = torch.where(finished, self.pad, new)
                ids = torch.cat([ids, new[:, None]], dim=1)
                if self.streamer is not None:
                    self.streamer.put(new)
                finished |= torch.isin(new, self.eos)
                if self.criteria:
                    finished |= self.criteria(ids, None)
                if finished.all():
                    break
        if self.streamer is not None:
            self.streamer.end()
        return ids.to(prompt.device)

    def _tokens(self, logits: torch.Tensor) -> Generator[torch.Tensor]:
        """Chosen tokens (batch,) on the host, some steps after the device has gone on."""
        pending: deque[_Arriving] = deque()
        for count in range(1, self.limit + 1):
            chosen = self._choose(logits)
            pending.append(_Arriving(chosen))
            while len(pending) > self.lookahead:
                yield pending.popleft().wait()
            if count < self.limit:
                logits = self.decoder.decode_step(chosen)
        for arriving in pending:
            yield arriving.wait()

    @torch.inference_mode()
    def _choose(self, logits: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.processors(self.inputs["input_ids"], logits)
        if not self.sample:
            return scores.argmax(-1)
        # what torch.multinomial does for one draw, less its look at the probabilities, which waits for the device
        probs: torch.Tensor = scores.softmax(-1)
        probs.div_(torch.empty_like(probs).exponential_())
        return probs.argmax(-1)


class _Arriving:
    """Tokens on their way to the host."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self.event: torch.cuda.Event | None = None
        if tokens.device.type != "cuda":
            self.tokens = tokens
            return
        self.tokens = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
        self.tokens.copy_(tokens, non_blocking=True)
        self.event = torch.cuda.Event()
        self.event.record(torch.cuda.current_stream(tokens.device))

    def wait(self) -> torch.Tensor:
        if self.event is not None:
            self.event.synchronize()
        return self.tokens


def _is_plain(config: Any) -> bool:
    """Whether one sequence a prompt is decoded token by token, and nothing but its ids is asked for."""
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
