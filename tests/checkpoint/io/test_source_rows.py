"""Rows of a stored tensor are read as they stand in a coded one: in a row, at a distance, or as columns."""

from pathlib import Path

import pytest
import torch

from hlwq_cli.checkpoint.io import open_source
from hlwq_cli.checkpoint.io.source_rows import SourceRows
from tests.support.builders import LLAMA, save_tensors

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_at_any_distance_are_those_of_the_tensor(tmp_path: Path, dtype: torch.dtype) -> None:
    weight = torch.randn(3, 10, 7).to(dtype)
    source = open_source(str(save_tensors(tmp_path / "m", {"w": weight}, LLAMA)))
    flat = weight.view(30, 7)
    for start, count, step in ((0, 30, 1), (4, 9, 1), (1, 10, 3), (29, 1, 1), (0, 2, 29), (5, 4, 2)):
        rows = SourceRows(source.tensors["w"], start, count, step)
        wanted = flat[start : start + (count - 1) * step + 1 : step]
        assert torch.equal(rows.read(source), wanted)
        for first in range(count):
            assert torch.equal(rows.read(source, first, 1), wanted[first : first + 1])
    source.close()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_columns_are_rows_of_the_transposed_matrices(tmp_path: Path, dtype: torch.dtype) -> None:
    weight = torch.randn(3, 10, 7).to(dtype)
    source = open_source(str(save_tensors(tmp_path / "m", {"w": weight}, LLAMA)))
    flat = weight.transpose(1, 2).reshape(21, 10)
    for start, count, step in ((0, 21, 1), (5, 9, 1), (7, 4, 2), (20, 1, 1), (1, 3, 3)):
        rows = SourceRows(source.tensors["w"], start, count, step, is_transposed=True)
        wanted = flat[start : start + (count - 1) * step + 1 : step]
        assert torch.equal(rows.read(source), wanted)
        assert torch.equal(rows.read(source, count - 1, 1), wanted[-1:])
        assert rows.nbytes == wanted.numel() * dtype.itemsize
    source.close()


def test_only_all_rows_in_their_order_are_whole(tmp_path: Path) -> None:
    source = open_source(str(save_tensors(tmp_path / "m", {"w": torch.zeros(4, 6)}, LLAMA)))
    info = source.tensors["w"]
    assert SourceRows.whole(info).is_whole
    assert not SourceRows(info, 0, 3).is_whole
    assert not SourceRows(info, 0, 2, 2).is_whole
    assert not SourceRows(info, 0, 6, 1, is_transposed=True).is_whole
    source.close()
