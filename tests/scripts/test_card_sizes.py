"""What a card can run is counted from the bytes of the real configuration, by what chooses the slots."""

import pytest

from hlwq_cli.errors import UsageError
from hlwq_cli.runtime.offload.memory_budget import CONTEXT_BYTES, TOKENS, MemoryEstimate
from hlwq_cli.sizes import parse_size
from scripts.studies import card_sizes
from tests.support.builders import gemma4_full


@pytest.fixture(scope="module")
def needs() -> MemoryEstimate:
    found: MemoryEstimate = card_sizes.needs_of(gemma4_full(), 5)[0]
    return found


def test_slots_and_other_weights_are_the_planned_checkpoint(needs: MemoryEstimate) -> None:
    """Each part of a record is padded to 128 bytes; a model also has some small buffers of its own."""
    planned = card_sizes.planned(gemma4_full(), 5).output_bytes
    assert needs.weights + needs.slot * needs.experts == pytest.approx(planned, rel=1e-4)
    assert needs.experts == 128
    record = 1408 * 2816 * 5 // 8 + 1408 * 44 + 1408 * 2 + 2816 * 704 * 5 // 8 + 2816 * 11 + 2816 * 2
    assert needs.slot == 30 * record
    assert needs.scratch == (8 + 16) * record


def test_keys_and_values_are_those_of_25_windows_and_5_full_layers(needs: MemoryEstimate) -> None:
    assert needs.cache == 25 * 1024 * 2 * 8 * 256 * 2 + 5 * TOKENS * 2 * 2 * 512 * 2


def test_slots_fill_what_the_rest_leaves(needs: MemoryEstimate) -> None:
    for budget in (8 * 10**9, 86 * 10**8, 12 * 10**9):
        slots = needs.slots(budget)
        assert needs.others + slots * needs.slot <= budget < needs.others + (slots + 1) * needs.slot
    assert needs.slots(10**12) == 128
    assert needs.others == CONTEXT_BYTES + needs.weights + needs.cache + needs.workspace + needs.scratch


def test_the_least_that_is_named_works_and_less_does_not(needs: MemoryEstimate) -> None:
    with pytest.raises(UsageError, match=r"Give at least .*GB\.") as refused:
        needs.slots(2 * 10**9)
    least = refused.value.hint.removeprefix("Give at least ").rstrip(".")
    assert needs.slots(parse_size(least)) == 1
    with pytest.raises(UsageError):
        needs.slots(parse_size(least) - 10**7)
    assert "2.96 GB of other weights" in needs.line(34)
