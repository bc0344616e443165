"""Answers of a model: by captured steps on a static cache where the model allows it, else by transformers."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator
from contextlib import closing
from typing import Any, Literal

import torch

from ..kv.position import StaticDecodeUnsupported
from .config_overrides import config_overrides
from .decoder import Decoder
from .request import DecodeRequest
from .transformers_errors import as_unsupported

Decoding = Literal["graph", "eager", "transformers"]

logger = logging.getLogger("hlwq")

LOOKAHEAD_STEPS = 2
"""Steps that a GPU is given before the host reads the first one's tokens."""


class Generation:
    """Answers of one model; its `generate` replaces the model's own.

    Attributes:
        decoder: the static decoder; None where transformers decodes.
        fallback_reason: why transformers decodes, on a GPU.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.decoder: Decoder | None = None
        self.fallback_reason = ""
        self._warned: set[str] = set()
        self._device: torch.device | None = None
        self._follow_device()

    @property
    def decoding(self) -> Decoding:
        """How answers are decoded; whether steps can be captured is known after the first."""
        if self.decoder is None:
            return "transformers"
        return "graph" if self.decoder.graph_error is None else "eager"

    def generate(self, *, streamer: Any = None, stopping_criteria: Any = None, **options: Any) -> torch.Tensor:
        """Return ids (batch, prompt and answer), as `model.generate` does with the same inputs and settings.

        An encoder-decoder returns the start token and the answer. transformers decodes beams, penalties for earlier
        tokens, and with a cache that the caller brings. A call waits until an earlier one has ended.

        Raises:
            UnsupportedError: transformers cannot generate with these inputs and settings.
        """
        self._follow_device()
        options = {**self._overrides(options, streams=streamer is not None), **options}
        decoder = self.decoder
        request = None if decoder is None else DecodeRequest.of(self.model, stopping_criteria, dict(options))
        if decoder is not None and request is not None:
            try:
                with decoder.lock:
                    return _decode(decoder, request, streamer)
            except StaticDecodeUnsupported as error:
                self._fall_back(error)
        name = type(self.model).__name__
        with as_unsupported(f"{name} cannot answer this", "Check the prompt and generation_config.json."):
            out: torch.Tensor = self.model.generate(**options, streamer=streamer, stopping_criteria=stopping_criteria)
        return out

    def _follow_device(self) -> None:
        """Make the decoder of the device that the model is on, if it was moved there since the last answer."""
        if self.model.device == self._device:
            return
        self._device, self.decoder, self.fallback_reason = self.model.device, None, ""
        if self._device.type == "cuda":
            try:
                self.decoder = Decoder(self.model)
            except StaticDecodeUnsupported as error:
                self._fall_back(error)

    def _overrides(self, options: dict[str, Any], *, streams: bool) -> dict[str, Any]:
        """Return what must replace settings of the model's generation config; warn once of each that is ignored."""
        found, reasons = config_overrides(
            self.model.generation_config,
            streams=streams,
            has_tokenizer=options.get("tokenizer") is not None,
        )
        for name, reason in reasons.items():
            if name not in self._warned and name not in options:
                self._warned.add(name)
                logger.warning("generation_config.json has %s, which is ignored: %s.", name, reason)
        return found

    def _fall_back(self, reason: StaticDecodeUnsupported) -> None:
        self.decoder, self.fallback_reason = None, str(reason)
        logger.warning("Decoding with transformers' own loop, which is slower: %s.", reason)


def _decode(decoder: Decoder, request: DecodeRequest, streamer: Any) -> torch.Tensor:
    """Return prompts and answers on the model's device, with the shorter answers padded."""
    prompt: torch.Tensor = request.inputs["input_ids"]
    ids = prompt.cpu()
    logits = decoder.prefill(request.inputs, request.max_new_tokens)
    if streamer is not None:
        streamer.put(ids)
    finished = torch.zeros(ids.shape[0], dtype=torch.bool)
    with closing(_tokens(decoder, request, logits)) as tokens:
        for new in tokens:
            new = torch.where(finished, request.pad, new)
            ids = torch.cat([ids, new[:, None]], dim=1)
            if streamer is not None:
                streamer.put(new)
            finished |= torch.isin(new, request.eos)
            if request.criteria:
                finished |= request.criteria(ids, None)
            if finished.all():
                break
    if streamer is not None:
        streamer.end()
    return ids.to(prompt.device)


def _tokens(decoder: Decoder, request: DecodeRequest, logits: torch.Tensor) -> Generator[torch.Tensor]:
    """Yield tokens (batch,) on the host, which reads them `LOOKAHEAD_STEPS` behind a GPU."""
    lookahead = LOOKAHEAD_STEPS if decoder.device.type == "cuda" else 0
    pending: deque[_HostCopy] = deque()
    for count in range(1, request.max_new_tokens + 1):
        tokens = _sample(request, logits)
        pending.append(_HostCopy(tokens))
        while len(pending) > lookahead:
            yield pending.popleft().wait()
        if count < request.max_new_tokens:
            logits = decoder.decode_step(tokens)
    for copy in pending:
        yield copy.wait()


@torch.inference_mode()
def _sample(request: DecodeRequest, logits: torch.Tensor) -> torch.Tensor:
    """Return the next tokens (batch,) on the device."""
    scores: torch.Tensor = request.processors(request.inputs["input_ids"], logits)
    if not request.do_sample:
        return scores.argmax(-1)
    # as torch.multinomial does for one draw, without its check of the probabilities, which waits for the device
    probs: torch.Tensor = scores.softmax(-1)
    probs.div_(torch.empty_like(probs).exponential_())
    return probs.argmax(-1)


class _HostCopy:
    """Tokens on their way to the host."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self.event: torch.cuda.Event | None = None
        self.tokens = tokens
        if tokens.device.type == "cuda":
            self.tokens = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            self.tokens.copy_(tokens, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record(torch.cuda.current_stream(tokens.device))

    def wait(self) -> torch.Tensor:
        """Return the tokens once they have arrived."""
        if self.event is not None:
            self.event.synchronize()
        return self.tokens
