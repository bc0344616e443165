"""Decoding token by token on buffers that stay where they are, so that a step can be captured into a CUDA graph."""

from __future__ import annotations

import threading
from typing import Any

import torch

from ..kv.attention import kv_bits_of
from ..kv.static_cache import StaticCache, bucket
from .capture import StepGraphs
from .runner import ModelRunner
from .supported import check_supported, experts_choices, refuse_adapters


class Decoder:
    """Reads prompts and decodes token after token, for one batch of answers at a time.

    A step reads its input from and writes its logits to the same tensors each time, and never waits for the device.
    So it can be captured once for each length of the cache that attention reads, and replayed. On the CPU, and where
    capturing fails, the same step runs without a graph.

    Attributes:
        lock: hold it from `prefill` to the last `decode_step`.
        runner: runs the model.

    Raises:
        StaticDecodeUnsupported: the model cannot be decoded this way.
    """

    def __init__(self, model: Any) -> None:
        check_supported(model)
        self.model = model
        self.device: torch.device = model.device
        self.lock = threading.Lock()
        self.runner = ModelRunner(model)
        self._graphs = StepGraphs(self.device, experts_choices(model))
        self._num_positions = 0
        self._cache: StaticCache | None = None
        self._logits: torch.Tensor | None = None
        self._ids = self._position_ids = torch.empty(0, 1, dtype=torch.int64)

    @property
    def graph_error(self) -> str | None:
        """Why steps are not captured; None while they are. Set it to run steps without graphs."""
        return self._graphs.error

    @graph_error.setter
    def graph_error(self, reason: str | None) -> None:
        self._graphs.error = reason

    @torch.inference_mode()
    def prefill(self, inputs: dict[str, Any], max_new_tokens: int) -> torch.Tensor:
        """Read prompts, padded on the left; float32 logits (batch, vocabulary) of their last tokens.

        Args:
            inputs: of the model, with its `attention_mask` (batch, tokens).
            max_new_tokens: tokens after the prompt to make room for.

        Raises:
            StaticDecodeUnsupported: a step of the model asks the cache for values that a graph would freeze, or the
                model has adapters, which may change from answer to answer.
        """
        refuse_adapters(self.model)
        batch, self._num_positions = inputs["attention_mask"].shape
        self._allocate(batch, bucket(self._num_positions + max_new_tokens))
        logits = self._read(inputs)
        if self._logits is None:
            self._logits = torch.empty_like(logits)
            # The first step will repeat this one: a model that cannot be stepped says so before a token is out.
            if self.runner.try_layers(lambda: self._run(None)):
                logits = self._read(inputs)  # as every later prompt will be read
        return logits

    def _read(self, inputs: dict[str, Any]) -> torch.Tensor:
        assert self._cache is not None
        mask = inputs["attention_mask"]
        self._cache.begin(mask)
        position_ids = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)
        self._position_ids.copy_(position_ids[:, -1:])
        return self.runner.prompt(inputs, position_ids, self._cache)

    @torch.inference_mode()
    def decode_step(self, ids: torch.Tensor) -> torch.Tensor:
        """Decode after tokens `ids` (batch,); float32 logits (batch, vocabulary), which the next step overwrites."""
        assert self._cache is not None
        self._num_positions += 1
        self._ids.copy_(ids[:, None])
        self._position_ids.add_(1)
        self._cache.code(self._num_positions)
        length = self._cache.position.length = bucket(self._num_positions)
        self._graphs.run(length, self._run)
        self._cache.position.current.add_(1)
        assert self._logits is not None
        return self._logits

    def _allocate(self, batch: int, capacity: int) -> None:
        """Make the buffers. Later answers reuse them if they are large enough, with the graphs that use them."""
        if self._cache is not None and self._cache.batch == batch and self._cache.capacity >= capacity:
            return
        self._cache = None
        config, bits = self.runner.config, kv_bits_of(self.model)
        self._cache = StaticCache(config, batch, capacity, self.model.dtype, self.device, bits)
        self._graphs.clear()
        self._logits = None
        self._ids = torch.zeros(batch, 1, dtype=torch.int64, device=self.device)
        self._position_ids = torch.zeros_like(self._ids)

    def _run(self, experts: str | None) -> None:
        """Run the work of a step from and to the static buffers; it may be repeated at will."""
        assert self._cache is not None
        assert self._logits is not None
        self._logits.copy_(self.runner.step(self._ids, self._position_ids, self._cache, experts))
