"""Experts that are kept off the GPU: their records, the slots on the device, and the layer that runs from slots."""

from .expert_layout import Part, RecordLayout, view
from .layer import OffloadedLayer
from .memory import MAX_BATCH_EXPERTS, ExpertSlots, Records, SlotCounts
from .slots import MAX_PREFETCHED_EXPERTS, SHIFT, UNIT

__all__ = [
    "MAX_BATCH_EXPERTS",
    "MAX_PREFETCHED_EXPERTS",
    "SHIFT",
    "UNIT",
    "ExpertSlots",
    "OffloadedLayer",
    "Part",
    "RecordLayout",
    "Records",
    "SlotCounts",
    "view",
]
