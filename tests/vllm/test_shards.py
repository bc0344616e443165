"""The columns of a rank: codes and scales of its blocks, for any size and number of ranks."""

import pytest
import torch

from hlwq_cli.codec import Coded, Scheme, decode, encode
from hlwq_cli.vllm.shards import Columns

RANKS = range(1, 9)
ODD = [8, 72, 88, 200, 352, 704, 2112]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("ranks", RANKS)
def test_ranks_hold_the_weights_of_their_columns(bits: int, ranks: int) -> None:
    each = 88
    weight = torch.randn(3, each * ranks, generator=torch.Generator().manual_seed(ranks))
    coded, _ = encode(weight, Scheme(bits, 64, "log8", False))
    whole = decode(coded)
    for rank in range(ranks):
        columns = Columns(rank * each, (rank + 1) * each, 64)
        part = Coded(
            columns.codes(coded.codes, bits), columns.scales(coded.scales), coded.base, (3, columns.held), coded.scheme
        )
        found = decode(part)[:, columns.lead :]
        assert torch.equal(found, whole[:, columns.start : columns.stop])


@pytest.mark.parametrize("each", ODD)
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("block_size", [32, 64, 128])
def test_ranks_cover_every_column_once(each: int, ranks: int, block_size: int) -> None:
    covered = []
    for rank in range(ranks):
        columns = Columns(rank * each, (rank + 1) * each, block_size)
        held = range(columns.first_block * block_size, (columns.first_block + columns.blocks) * block_size)
        assert columns.start in held
        assert columns.stop - 1 in held
        assert columns.blocks * block_size < each + 2 * block_size
        assert columns.row_bytes(5) * 8 == columns.blocks * block_size * 5
        covered += list(held)[columns.lead : columns.lead + each]
    assert covered == list(range(ranks * each))


def test_activations_get_zeros_for_the_columns_of_another_rank() -> None:
    columns = Columns(88, 176, 64)
    x = torch.ones(2, 88)
    assert columns.lead == 24
    assert torch.equal(columns.pad(x), torch.cat([torch.zeros(2, 24), x], dim=1))
    assert Columns(0, 88, 64).pad(x) is x
