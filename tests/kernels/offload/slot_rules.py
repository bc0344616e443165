"""The rules by which experts get slots, once more: with sets and sorting instead of tensors."""

from __future__ import annotations

from collections import Counter

from hlwq_kernels.offload.slots import SHIFT, UNIT


class SlotRules:
    """The slots of one layer."""

    def __init__(self, experts: int, slots: int) -> None:
        self.use_counts, self.slots = Counter(dict.fromkeys(range(experts), 0)), [-1] * slots
        self.fetched = 0

    def step(self, chosen: set[int]) -> dict[int, int]:
        """Where each chosen expert is found, counted from the layer's first slot; scratch from -1 down."""
        for e in self.use_counts:
            self.use_counts[e] += (e in chosen) * UNIT - -(-self.use_counts[e] // 2**SHIFT)
        free = [s for s, e in enumerate(self.slots) if e not in chosen]
        free.sort(key=lambda s: -1 if self.slots[s] < 0 else self.use_counts[self.slots[s]])
        scratch = -1
        places = {}
        for e in sorted(chosen - set(self.slots)):
            self.fetched += 1
            if free:
                self.slots[free.pop(0)] = e
            else:
                places[e], scratch = scratch, scratch - 1
        return places | {e: s for s, e in enumerate(self.slots) if e in chosen}

    def ahead(self, guess: list[int], most: int) -> list[tuple[int, int]]:
        """The experts that are fetched before a step, and their slots."""
        free = [s for s, e in enumerate(self.slots) if e not in guess]
        free.sort(key=lambda s: -1 if self.slots[s] < 0 else self.use_counts[self.slots[s]])
        absent = [e for e in dict.fromkeys(guess) if e in self.use_counts and e not in self.slots]
        found = list(zip(absent[:most], free, strict=False))
        for e, s in found:
            self.slots[s] = e
        return found
