"""One-token steps of a model on buffers that stay where they are, captured into CUDA graphs where there is CUDA."""

from __future__ import annotations

import inspect
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationMixin

from ..kv.attention import NAME as CODES
from ..kv.attention import kv_bits_of
from ..kv.position import StaticDecodeUnsupported
from ..kv.static_cache import StaticCache, bucket
from ..kv.step_attention import stepping
from ..modules.experts import HLWQExperts
from .families.gemma4 import StepLayer, are_alike, compared, step_layers, stepped
from .fused_norms import fused, fusible_norms

logger = logging.getLogger("hlwq")
REPLAYS = 5
"""Replays by which experts implementations are compared."""


class Decoder:
    """Reads prompts and decodes token after token; for one answer, or batch of answers, at a time.

    A step finds its input in, and leaves its logits in, the same tensors each time, and asks the device nothing, so
    that it can be captured once for each length of the cache that attention looks at, and replayed. On the CPU, and
    where capturing fails, the same step runs as it is.

    Attributes:
        lock: to be held from `prefill` to the last `decode_step`.
        graph_error: why steps are not captured; None while they are.

    Raises:
        StaticDecodeUnsupported: the model cannot be decoded so.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.config = model, model.config.get_text_config()
        self.device: torch.device = model.device
        self.lock = threading.Lock()
        self.graph_error = None if self.device.type == "cuda" else "there is no CUDA device"
        self._check()
        parameters = inspect.signature(type(model).forward).parameters
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        self._experts = _experts_choices(model) if self.graph_error is None else (None,)
        self._norms = fusible_norms(model)
        self._untried, self._layers = step_layers(model), list[StepLayer]()
        self._cache: StaticCache | None = None
        self._logits: torch.Tensor | None = None
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None

    def _check(self) -> None:
        model = self.model
        _refuse_adapters(model)
        if model.config.is_encoder_decoder:
            raise StaticDecodeUnsupported("it has an encoder")
        if self.config._attn_implementation not in ("sdpa", "eager", CODES):
            raise StaticDecodeUnsupported(f"its attention is {self.config._attn_implementation}")
        positions = "_prepare_position_ids_for_generation"
        if getattr(type(model), positions) is not getattr(GenerationMixin, positions):
            raise StaticDecodeUnsupported("its positions are its own")
        if len({p.device for p in model.parameters()}) > 1:
            raise StaticDecodeUnsupported("it lies on several devices")
        StaticCache(self.config, 1, 1, model.dtype, torch.device("meta"), kv_bits_of(model))

    @torch.inference_mode()
    def prefill(self, inputs: dict[str, Any], max_new_tokens: int) -> torch.Tensor:
        """Read prompts, padded on the left, with room for so many tokens after them; logits (batch, vocabulary).

        Raises:
            StaticDecodeUnsupported: a step of the model asks the cache for values that a graph would freeze, or the
                model has adapters, which may change from answer to answer.
        """
        _refuse_adapters(self.model)
        batch, self._num_positions = inputs["attention_mask"].shape
        self._allocate(batch, bucket(self._num_positions + max_new_tokens))
        logits = self._read(inputs)
        if self._logits is None:
            self._logits = torch.empty_like(logits)
            if self._try():
                logits = self._read(inputs)  # as every later prompt will be read
        return logits

    def _read(self, inputs: dict[str, Any]) -> torch.Tensor:
        assert self._cache is not None
        mask = inputs["attention_mask"]
        self._cache.begin(mask)
        position_ids = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)
        self._position_ids.copy_(position_ids[:, -1:])
        prepared = self.model.prepare_inputs_for_generation(
            **inputs,
            position_ids=position_ids,
            is_first_iteration=True,
            use_cache=True,
            **{self._cache_name: self._cache},
            **self._last_only,
        )
        with fused(self._norms), stepped(self._layers):
            logits: torch.Tensor = self.model(**prepared, return_dict=True).logits[:, -1].float()
        self._cache.position.prefilling = False
        return logits

    def _try(self) -> bool:
        """A step that the first one does again: a model that cannot says so now, before a token is out.

        Returns whether from now on layers run in fewer launches, because they were seen to give the same.
        """
        layers, self._untried = self._untried, []
        differences: list[torch.Tensor] = []
        with compared(layers, differences):
            self._run()
        if layers and are_alike(differences):
            self._layers = layers
            return True
        return False

    @torch.inference_mode()
    def decode_step(self, ids: torch.Tensor) -> torch.Tensor:
        """Decode after tokens `ids` (batch,); float32 logits (batch, vocabulary), which the next step overwrites."""
        assert self._cache is not None
        self._num_positions += 1
        self._ids.copy_(ids[:, None])
        self._position_ids.add_(1)
        self._cache.code(self._num_positions)
        length = self._cache.position.length = bucket(self._num_positions)
        if self.graph_error is None and length not in self._graphs:
            self._capture(length)
        if self.graph_error is None:
            self._graphs[length].replay()
        else:
            self._run()
        self._cache.position.current.add_(1)
        assert self._logits is not None
        return self._logits

    def _allocate(self, batch: int, capacity: int) -> None:
        """Buffers, which later answers use again when they are large enough; graphs belong to them."""
        if self._cache is not None and self._cache.batch == batch and self._cache.capacity >= capacity:
            return
        self._cache = None
        bits = kv_bits_of(self.model)
        self._cache = StaticCache(self.config, batch, capacity, self.model.dtype, self.device, bits)
        self._graphs, self._pool, self._logits = {}, None, None
        self._ids = torch.zeros(batch, 1, dtype=torch.int64, device=self.device)
        self._position_ids = torch.zeros_like(self._ids)

    def _run(self, experts: str | None = None) -> None:
        """The work of a step, from and to the static buffers; to be repeated at will."""
        assert self._cache is not None
        with stepping(self.config, experts), fused(self._norms), stepped(self._layers):
            out = self.model(
                input_ids=self._ids,
                position_ids=self._position_ids,
                attention_mask=self._cache.begin_step(),
                use_cache=True,
                return_dict=True,
                **{self._cache_name: self._cache},
                **self._last_only,
            )
        assert self._logits is not None
        self._logits.copy_(out.logits[:, -1])

    def _capture(self, length: int) -> None:
        """Capture the step at a length, with the experts implementation that is quickest, or find that it cannot be."""
        captured: list[tuple[float, str | None, torch.cuda.CUDAGraph]] = []
        failure: RuntimeError | None = None
        for experts in self._experts:
            try:
                with torch.cuda.device(self.device):
                    graph = self._captured(experts)
                    time = _milliseconds(graph) if len(self._experts) > 1 else 0.0
            except RuntimeError as error:
                failure = error
                continue
            captured.append((time, experts, graph))
        if captured:
            _, experts, self._graphs[length] = min(captured, key=lambda c: c[0])
            self._experts, self._pool = (experts,), self._graphs[length].pool()
        else:
            self.graph_error = (str(failure).splitlines() or [type(failure).__name__])[0]
            logger.warning("Decoding without a CUDA graph, which is slower: %s", self.graph_error)

    def _captured(self, experts: str | None) -> torch.cuda.CUDAGraph:
        """Run once to compile and plan, once to find waits for the device, which would spoil a capture, and capture."""
        stream = self._stream = self._stream or torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._run(experts)
            with _waiting_is_an_error():
                self._run(experts)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with (
            _random_numbers_unharmed(),
            torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"),
        ):
            self._run(experts)
        return graph


def _refuse_adapters(model: Any) -> None:
    """Peft puts layers of its own around a model's, in place; what a graph or a step holds would go past them."""
    if any("base_layer" in module._modules for module in model.modules()):
        raise StaticDecodeUnsupported("it has adapters")


# Once for all threads: warnings.catch_warnings is for one.
warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype", UserWarning)


@contextmanager
def _waiting_is_an_error() -> Iterator[None]:
    """Raise RuntimeError where the host would wait for the device."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextmanager
def _random_numbers_unharmed() -> Iterator[None]:
    """Give the device's generator a fresh state when a capture fails, which would leave it unfit to draw."""
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    before = generator.clone_state()
    try:
        yield
    except BaseException:
        generator.graphsafe_set_state(before)
        raise


def _milliseconds(graph: torch.cuda.CUDAGraph) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    graph.replay()
    start.record()
    for _ in range(REPLAYS):
        graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def _experts_choices(model: Any) -> tuple[str | None, ...]:
    """Experts implementations of transformers that do not wait for the device; None where there is nothing to choose.

    `grouped_mm` reads only the experts that were chosen, but is made for many tokens; `batched_mm` first copies them.
    """
    for module in model.modules():
        coded = isinstance(module, HLWQExperts) and not module.dense
        if hasattr(module, "is_transposed") and hasattr(module, "_apply_gate") and not coded:
            return ("grouped_mm", "batched_mm")
    return (None,)
