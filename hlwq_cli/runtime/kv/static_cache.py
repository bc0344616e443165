"""A KV cache whose buffers stay where they are, so that a decode step can be captured into a CUDA graph.

The static layers of transformers cannot be captured by hand: a sliding layer counts its tokens in a Python int and
branches on it, and once full it moves the whole window at every step. Here a layer is a ring: the key at position p of
the padded sequence is in slot p mod size. A full layer's ring is as long as the cache, a sliding layer's as long as its
window. Keys carry their positions already, so their order in memory does not matter to attention. The current position
is one tensor on the device. Attention reads the first `length` slots, a number that is fixed in a captured graph.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache, DynamicCache

from ..transformers_private import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer, is_placeholder
from .bits import KVBits
from .coded_states import coded_tokens
from .position import DecodePosition, StaticDecodeUnsupported, StaticLengths
from .static_quantized import CodedRingLayer


class RingLayer(StaticLengths, CacheLayerMixin):
    """Keys and values of one layer, (batch, heads, size, head size)."""

    def __init__(self, position: DecodePosition, size: int, sliding: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.position, self.is_sliding = position, sliding
        self.size = self.max_length = size

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make the buffers, once the first keys show their shape."""
        self.keys = key_states.new_zeros(*key_states.shape[:2], self.size, key_states.shape[-1])
        self.values = value_states.new_zeros(*value_states.shape[:2], self.size, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store keys and values; return what attention reads: a prompt's own, or the slots in use in a decode step."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        if self.position.prefilling:
            self._keep_prompt(self.keys, key_states)
            self._keep_prompt(self.values, value_states)
            return key_states, value_states
        slot = self.position.slots[self.size]
        self.keys.index_copy_(2, slot, key_states)
        self.values.index_copy_(2, slot, value_states)
        length = min(self.position.length, self.size)
        return self.keys[:, :, :length], self.values[:, :, :length]

    def _keep_prompt(self, buffer: torch.Tensor, states: torch.Tensor) -> None:
        num_positions = states.shape[2]
        first = max(0, num_positions - self.size)
        slots = torch.arange(first, num_positions, device=states.device) % self.size
        buffer.index_copy_(2, slots, states[:, :, first:])


class StaticCache(Cache):
    """The cache of one batch, and its masks.

    Args:
        config: of the text model.
        batch: sequences.
        capacity: positions to make room for, prompt and answer.
        dtype: of the model, and of masks.
        device: of the buffers.
        bits: widths of codes in full-attention layers; None for no codes.

    Raises:
        StaticDecodeUnsupported: a layer is neither full nor sliding attention.
    """

    def __init__(
        self,
        config: Any,
        batch: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        bits: KVBits | None = None,
    ) -> None:
        self.bits, self.coded = bits, 0
        self.position = DecodePosition(batch, capacity, device)
        self.batch, self.capacity, self.dtype = batch, capacity, dtype
        super().__init__(layers=[self._static(layer) for layer in DynamicCache(config=config).layers])
        ours = [layer for layer in self.layers if isinstance(layer, RingLayer | CodedRingLayer)]
        self.position.slots = {layer.size: torch.zeros_like(self.position.current) for layer in ours}
        self.kinds = sorted({_kind(layer) for layer in ours})
        self.positions = torch.arange(capacity, device=device)
        types = getattr(config, "layer_types", None)
        self.kind_of_type = (
            None
            if types is None
            else {t: _kind(layer) for t, layer in zip(types, self.layers, strict=False) if layer in ours}
        )

    def _static(self, layer: Any) -> Any:
        """Return the static layer that replaces the layer transformers would use."""
        if type(layer) is DynamicLayer and self.bits is not None:
            return CodedRingLayer(self.position, self.capacity, self.bits)
        if type(layer) is DynamicLayer:
            return RingLayer(self.position, self.capacity, sliding=False)
        if type(layer) is DynamicSlidingWindowLayer:
            return RingLayer(self.position, min(layer.sliding_window, self.capacity), sliding=True)
        if is_placeholder(layer):
            return layer
        raise StaticDecodeUnsupported(f"it has cache layers of an unknown kind ({type(layer).__name__})")

    def begin(self, attention_mask: torch.Tensor) -> None:
        """Empty the cache for a prompt; its mask (batch, tokens) is 0 where the prompt is padded."""
        self.reset()  # type: ignore[no-untyped-call]
        num_positions = attention_mask.shape[1]
        self.position.prefilling = True
        self.position.current.fill_(num_positions)
        self.position.seen.fill_(True)
        self.position.seen[:, :num_positions] = attention_mask.bool()
        self._set_coded(coded_tokens(num_positions))

    def _set_coded(self, num_positions: int) -> None:
        self.coded = num_positions
        self.position.coded.fill_(num_positions)

    def code(self, num_positions: int) -> None:
        """Encode what leaves the window at this length; call it before that step, outside a capture."""
        after = coded_tokens(num_positions)
        if after > self.coded:
            for layer in self.layers:
                if isinstance(layer, CodedRingLayer):
                    layer.code(self.coded, after)
            self._set_coded(after)

    def begin_step(self) -> dict[str, torch.Tensor] | torch.Tensor:
        """Compute the slots of the current position; return the mask or masks that the model takes.

        They are additive, (batch, 1, 1, slots), or for layers that hold codes boolean, (batch, 1, 1, positions).
        """
        position = self.position
        for size, slot in position.slots.items():
            torch.remainder(position.current, size, out=slot)
        torch.cat([position.coded, position.current + 1 - position.coded], out=position.lengths)
        masks = {
            kind: self._mask(kind) if kind else position.seen[:, None, None, : position.length] for kind in self.kinds
        }
        if self.kind_of_type is None:
            return masks[self.kinds[0]]
        return {name: masks[kind] for name, kind in self.kind_of_type.items()}

    def _mask(self, size: int) -> torch.Tensor:
        slots = self.positions[: min(self.position.length, size)]
        if self.position.length <= size:  # position and slot are the same
            visible = self.position.seen[:, : self.position.length] & (slots <= self.position.current)
        else:
            held = self.position.current - torch.remainder(self.position.current - slots, size)
            visible = self.position.seen[:, held.clamp(min=0)] & (held >= 0)
        hidden = torch.finfo(self.dtype).min
        mask = torch.zeros(visible.shape, dtype=self.dtype, device=visible.device)
        return mask.masked_fill_(~visible, hidden)[:, None, None, :]


def _kind(layer: RingLayer | CodedRingLayer) -> int:
    """Return which mask a layer takes in a step: its number of slots, or 0 for the mask of layers that hold codes."""
    return layer.size if isinstance(layer, RingLayer) else 0


def bucket(num_positions: int) -> int:
    """Return the length that attention reads for so many positions: 256 times 1, 2, 3, 4, 6, 8, 12, 16 and so on.

    Beyond 256, at most half of it is wasted. 18 captures reach a context of 128 K.
    """
    length = 256
    while length < num_positions:
        length += max(256, 1 << (length.bit_length() - 2))
    return length
