"""Embeddings in codes: a look-up gives the rows of the decoded weight, and nothing else is decoded for it."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from hlwq_cli.codec import Scheme, decode, encode, lloyd_max
from hlwq_cli.runtime.modules import HLWQEmbedding, HLWQTiedLinear, QuantFormat, code_embedding

ROWS, COLUMNS = 50, 100
SCHEMES = [*(Scheme(b, 64, "log8", False) for b in range(2, 9)), Scheme.classic(6)]
IDS = torch.tensor([[3, 0, 49], [3, 17, 3]])


def coded_embedding(
    scheme: Scheme, execution: str = "coded", dtype: torch.dtype = torch.float32, like: Any = None
) -> tuple[HLWQEmbedding, torch.Tensor]:
    """Embeddings that hold the codes of random weights, and what these decode to."""
    weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1)) * 0.05
    coded = encode(weight, scheme)[0]
    books = {scheme.bits: tuple(lloyd_max(scheme.bits))}
    embedding = (like or nn.Embedding(ROWS, COLUMNS, padding_idx=0)).to(dtype)
    code_embedding(embedding, scheme.bits, QuantFormat(scheme.block_size, scheme.scale, books, execution))  # type: ignore[arg-type]
    assert isinstance(embedding, HLWQEmbedding)
    parts = {"codes": coded.codes, "scales": coded.scales.view_as(embedding.scales)}
    embedding.load_state_dict(parts | ({} if coded.base is None else {"base": coded.base}))
    embedding.materialize()
    return embedding, decode(coded)


def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where the whole weight is decoded."""
    monkeypatch.setattr(HLWQEmbedding, "decoded", lambda self: pytest.fail("the whole weight was decoded"))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("execution", ["coded", "dense"])
def test_a_look_up_gives_the_rows_of_the_decoded_weight(scheme: Scheme, execution: str) -> None:
    embedding, weight = coded_embedding(scheme, execution)
    assert (embedding.dense_weight is not None) == (execution == "dense")
    assert torch.equal(embedding(IDS), weight[IDS])


@pytest.mark.parametrize("ids", [torch.tensor(7), torch.zeros(0, dtype=torch.int64), IDS.int()], ids=str)
def test_any_shape_and_integer_type_of_ids(ids: torch.Tensor) -> None:
    embedding, weight = coded_embedding(SCHEMES[4])
    assert torch.equal(embedding(ids), weight[ids.long()])


@pytest.mark.parametrize("id_", [ROWS, -1])
def test_an_id_outside_the_vocabulary_is_an_error_as_it_always_was(id_: int) -> None:
    embedding, _ = coded_embedding(SCHEMES[4])
    with pytest.raises(IndexError, match="index out of range"):
        embedding(torch.tensor([id_]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_are_rounded_to_the_models_type_in_both_executions(dtype: torch.dtype) -> None:
    for execution in ("coded", "dense"):
        embedding, weight = coded_embedding(SCHEMES[6], execution, dtype)
        assert torch.equal(embedding(IDS), weight.to(dtype)[IDS])


@pytest.mark.parametrize("execution", ["coded", "dense"])
def test_a_familys_own_scaling_stays(execution: str, monkeypatch: pytest.MonkeyPatch) -> None:
    like = Gemma3TextScaledWordEmbedding(ROWS, COLUMNS, 0, embed_scale=11.3)
    embedding, weight = coded_embedding(SCHEMES[4], execution, like=like)
    no_decoding(monkeypatch)
    assert isinstance(embedding, Gemma3TextScaledWordEmbedding)
    assert torch.equal(embedding(IDS), weight[IDS] * torch.tensor(11.3))


def test_the_weight_is_known_without_decoding_it_and_a_row_costs_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    embedding, weight = coded_embedding(SCHEMES[4])
    no_decoding(monkeypatch)
    assert (embedding.weight.shape, embedding.weight.dtype) == (weight.shape, torch.float32)
    assert torch.equal(embedding.weight[7, :], weight[7])
    assert torch.equal(embedding.weight[-1], weight[-1])


def test_the_weight_can_be_computed_with() -> None:
    embedding, weight = coded_embedding(SCHEMES[4])
    x = torch.randn(2, COLUMNS)
    assert torch.equal(x @ embedding.weight.T, x @ weight.T)
    assert torch.equal(embedding.weight[:, 5], weight[:, 5])
    assert torch.equal(embedding.weight.data * 2, weight * 2)
    assert all(type(t) is torch.Tensor for t in (embedding.weight[3], embedding.weight.double(), embedding.weight.data))


@pytest.mark.parametrize("execution", ["coded", "dense"])
def test_a_tied_head_multiplies_by_the_embeddings_and_holds_nothing(execution: str) -> None:
    embedding, weight = coded_embedding(SCHEMES[4], execution)
    head = HLWQTiedLinear(nn.Linear(COLUMNS, ROWS), embedding)
    head.materialize()
    assert list(head.state_dict()) == ["bias"]
    assert list(head.modules()) == [head]
    x = torch.randn(2, 3, COLUMNS)
    torch.testing.assert_close(head(x), nn.functional.linear(x, weight, head.bias), rtol=1e-5, atol=1e-5)
    assert torch.equal(head.weight, weight)


def test_a_tied_head_follows_the_embeddings_wherever_they_go() -> None:
    embedding, _ = coded_embedding(SCHEMES[4])
    head = HLWQTiedLinear(nn.Linear(COLUMNS, ROWS), embedding)
    nn.ModuleList([embedding, head]).to("meta")
    assert head.codes.is_meta
    assert head.weight.is_meta


@pytest.mark.parametrize("like", [None, Gemma3TextScaledWordEmbedding(ROWS, COLUMNS, 0, embed_scale=3.0)], ids=str)
def test_torch_compile_takes_a_look_up_whole(like: Any) -> None:
    embedding, _ = coded_embedding(SCHEMES[4], like=like)
    compiled = torch.compile(lambda ids: embedding(ids) * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(IDS), embedding(IDS) * 2)
