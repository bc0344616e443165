"""Weight error: the worst tensor comes first, and suspicious ones are flagged."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hlwq_cli.checkpoint import open_coded, open_source
from hlwq_cli.measure.similarity import codebook_error, similarity

Family = Callable[[str], Path]

# facts.md, Lloyd-Max on N(0, 1).
TABLE = {2: 0.11748, 3: 0.034548, 4: 0.0095010, 5: 0.0025047, 6: 0.00064424, 8: 0.000041185}


@pytest.mark.parametrize("bits", TABLE)
def test_the_expected_error_is_that_of_the_table(bits: int) -> None:
    assert codebook_error(bits) == pytest.approx(TABLE[bits], rel=1e-4)


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_every_coded_tensor_is_compared_and_not_suspicious(coded: Family, family: Family, name: str) -> None:
    checkpoint, source = open_coded(coded(name)), open_source(str(family(name)))
    found = similarity(checkpoint, source)
    records = {r.name: r for r in checkpoint.manifest.coded}
    assert {t.name for t in found} == set(records)
    assert [t for t in found if t.sick] == []
    for t in found:
        assert t.error == pytest.approx(records[t.name].nmse, rel=1e-3)
        assert t.cosine == pytest.approx(1 - t.error / 2, abs=1e-3)
    assert [t.error for t in found] == sorted((t.error for t in found), reverse=True)
    checkpoint.close()
    source.close()


def test_damaged_tensor_comes_first_and_is_suspicious(
    coded: Family, family: Family, copied: Callable[[Path], Path]
) -> None:
    folder, name = copied(coded("llama")), "model.layers.1.mlp.up_proj"
    info = open_coded(folder).tensors[f"{name}.codes"]
    with (folder / info.file).open("r+b") as f:
        f.seek(info.offset)
        f.write(bytes(info.nbytes // 4))
    checkpoint, source = open_coded(folder), open_source(str(family("llama")))
    found = similarity(checkpoint, source)
    assert found[0].name == name
    assert [t.name for t in found if t.sick] == [name]
    checkpoint.close()
    source.close()
