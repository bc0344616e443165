import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from hlwq_cli.errors import CorruptError, NonFiniteError, NotFoundError, UsageError
from hlwq_cli.runtime.calibration_data.imatrix import read_imatrix
from tests.runtime.calibration_data.imatrix_files import Sums, write_dat, write_gguf


def entries() -> Sums:
    rng = np.random.default_rng(0)
    dense = rng.random((1, 64), np.float32) * 1000
    experts = rng.random((4, 32), np.float32) * 10
    experts[2] = 0
    return {
        "blk.0.attn_q.weight": (dense, np.array([[1024]], np.float32)),
        "blk.0.ffn_down_exps.weight": (experts, np.array([[600], [300], [0], [124]], np.float32)),
    }


def test_a_gguf_imatrix_is_read(tmp_path: Path) -> None:
    expected = entries()
    found = read_imatrix(write_gguf(tmp_path / "i.gguf", expected))
    assert set(found.entries) == set(expected)
    assert found.tokens == 1024
    for name, (sums, counts) in expected.items():
        assert torch.equal(found.entries[name].sums, torch.from_numpy(sums).flatten())
        assert found.entries[name].counts.tolist() == counts.flatten().tolist()


def test_the_older_form_is_read_up_to_a_factor(tmp_path: Path) -> None:
    found = read_imatrix(write_dat(tmp_path / "imatrix.dat", entries()))
    sums, _ = entries()["blk.0.attn_q.weight"]
    assert torch.allclose(found.entries["blk.0.attn_q.weight"].sums, torch.from_numpy(sums).flatten())
    assert found.entries["blk.0.attn_q.weight"].counts.tolist() == [1024]
    experts = found.entries["blk.0.ffn_down_exps.weight"].sums.view(4, 32)
    sums, counts = entries()["blk.0.ffn_down_exps.weight"]
    assert torch.allclose(experts[1], torch.from_numpy(sums[1] / counts[1]) * 1024)  # two chunks of 512
    assert experts[2].tolist() == [1024] * 32


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a GGUF file, but not an imatrix"):
        read_imatrix(write_gguf(tmp_path / "model.gguf", entries(), kind="model"))
    with pytest.raises(UsageError, match="not an imatrix"):
        read_imatrix(write_gguf(tmp_path / "empty.gguf", {}))
    (tmp_path / "text.dat").write_text("Once upon a time there was a file.")
    with pytest.raises(UsageError, match="is not an imatrix"):
        read_imatrix(tmp_path / "text.dat")
    (tmp_path / "empty.dat").write_bytes(b"")
    with pytest.raises(CorruptError, match="is cut short, or not an imatrix"):
        read_imatrix(tmp_path / "empty.dat")
    with pytest.raises(NotFoundError, match="There is no file"):
        read_imatrix(tmp_path / "none.gguf")


@pytest.mark.parametrize("form", ["gguf", "dat"])
def test_a_cut_file_is_refused(tmp_path: Path, form: str) -> None:
    path = (write_gguf if form == "gguf" else write_dat)(tmp_path / f"i.{form}", entries())
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(CorruptError):
        read_imatrix(path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_sums_that_are_not_finite_are_refused(tmp_path: Path, bad: float) -> None:
    damaged = dict(entries())
    sums, counts = damaged["blk.0.attn_q.weight"]
    sums[0, 5] = bad
    damaged["blk.0.attn_q.weight"] = (sums, counts)
    with pytest.raises(NonFiniteError, match=r"The sums of blk.0.attn_q.weight in .* are not finite"):
        read_imatrix(write_gguf(tmp_path / "i.gguf", damaged))


def test_sums_without_counts_are_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "i.gguf", entries())
    path.write_bytes(path.read_bytes().replace(b"attn_q.weight.counts", b"attn_q.weight.county"))
    with pytest.raises(CorruptError, match="do not fit together"):
        read_imatrix(path)


def test_a_hostile_number_of_entries_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "i.dat").write_bytes(struct.pack("<iii", 2**30, 4, 1))
    with pytest.raises(UsageError, match="is not an imatrix"):
        read_imatrix(tmp_path / "i.dat")
