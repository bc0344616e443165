"""A KV cache whose buffers stay where they are, so that a step of decoding can be captured in a CUDA graph.

transformers' static layers cannot be captured by hand: a sliding layer counts its tokens in a Python int and branches
on it, and once full it moves the whole window at every step. Here a layer is a ring: the key of column c, the c-th
place of the padded sequence, lies in slot c mod size. A full layer's ring is as long as the cache, a sliding layer's as
its window; keys carry their positions already, so their order in memory does not matter to attention. Where decoding
stands is one tensor on the device, and attention sees the first `length` slots, which is fixed in a captured graph.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from .bits import KVBits
from .cache import coded_tokens
from .position import DecodePosition, StaticDecodeUnsupported
from .static_quantized import CodedRingLayer


class RingLayer(CacheLayerMixin):
    """Keys and values of one layer, (batch, heads, size, head size)."""

    def __init__(self, position: DecodePosition, size: int, sliding: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.position, self.size, self.is_sliding = position, size, sliding

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make the buffers, when the first keys show their shape."""
        self.keys = key_states.new_zeros(*key_states.shape[:2], self.size, key_states.shape[-1])
        self.values = value_states.new_zeros(*value_states.shape[:2], self.size, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep new keys and values, and give those to attend to: of a prompt its own, of a step the slots in use."""
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

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys of a prompt; a step brings its own mask."""
        self.position.refuse_in_step()
        return query_length, 0

    def get_seq_length(self) -> int:
        """Nothing, before the prompt."""
        self.position.refuse_in_step()
        return 0

    def get_max_length(self) -> int:
        """Slots."""
        return self.size


class StaticCache(Cache):
    """The cache of one batch, and the masks that go with it.

    Args:
        config: of the text model.
        batch: rows.
        capacity: columns it can hold, prompt and answer.
        dtype: of masks, that of the model.
        device: where it lies.
        bits: of codes, in layers that see every column; None for none.

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
        """What stands for a layer of transformers' own choice for this model."""
        if type(layer) is DynamicLayer and self.bits is not None:
            return CodedRingLayer(self.position, self.capacity, self.bits)
        if type(layer) is DynamicLayer:
            return RingLayer(self.position, self.capacity, sliding=False)
        if type(layer) is DynamicSlidingWindowLayer:
            return RingLayer(self.position, min(layer.sliding_window, self.capacity), sliding=True)
        if type(layer).__name__ == "DummyLayer":  # of layers that share another's keys; transformers 5.17 has none
            return layer
        raise StaticDecodeUnsupported(f"it has a cache layer of another kind ({type(layer).__name__})")

    def begin(self, attention_mask: torch.Tensor) -> None:
        """Empty the cache for a prompt, (batch, columns) of ones and of zeros where it is padded."""
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
        """Code what leaves the window when there are so many columns; to be called before that step, uncaptured."""
        after = coded_tokens(num_positions)
        if after > self.coded:
            for layer in self.layers:
                if isinstance(layer, CodedRingLayer):
                    layer.code(self.coded, after)
            self._set_coded(after)

    def begin_step(self) -> dict[str, torch.Tensor] | torch.Tensor:
        """Find the slots of the current column; the mask or masks the model takes.

        They are additive, (batch, 1, 1, slots), or for layers that hold codes boolean, (batch, 1, 1, columns).
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
        if self.position.length <= size:  # column and slot are the same
            visible = self.position.seen[:, : self.position.length] & (slots <= self.position.current)
        else:
            held = self.position.current - torch.remainder(self.position.current - slots, size)
            visible = self.position.seen[:, held.clamp(min=0)] & (held >= 0)
        hidden = torch.finfo(self.dtype).min
        mask = torch.zeros(visible.shape, dtype=self.dtype, device=visible.device)
        return mask.masked_fill_(~visible, hidden)[:, None, None, :]


def _kind(layer: RingLayer | CodedRingLayer) -> int:
    """Which mask a layer takes in a step: that of so many slots, or 0, that of codes."""
    return layer.size if isinstance(layer, RingLayer) else 0


def bucket(num_positions: int) -> int:
    """The length that attention looks at for so many columns: 256 times 1, 2, 3, 4, 6, 8, 12, 16 and so on.

    At most half of it is in vain beyond 256, and a context of 128 K is reached by 18 captures.
    """
    length = 256
    while length < num_positions:
        length += max(256, 1 << (length.bit_length() - 2))
    return length
