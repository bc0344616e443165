"""Checkpoints executed as codes on the GPU answer as on the CPU; scripts/checks/same_answers.py says how."""

import os
from pathlib import Path

import pytest
import torch

from hlwq_cli.checkpoint import load_recipe, quantize
from hlwq_cli.runtime.loading import load_model
from hlwq_cli.runtime.modules import HLWQEmbedding, HLWQTiedLinear
from scripts.checks.same_answers import compare
from tests.gpu.device import CUDA, needs_cuda

pytestmark = needs_cuda

MORE = os.environ.get("HLWQ_TEST_CHECKPOINTS", "").split(os.pathsep)
"""Quantized checkpoints of the developer, in addition to the sample."""


@pytest.fixture(scope="module")
def headed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gpu") / "head"
    quantize("sample", out, load_recipe("head"))
    return out


@pytest.mark.parametrize("recipe", ["default", "head", "classic"])
def test_the_sample_as_codes_answers_as_on_the_cpu(recipe: str, tmp_path: Path) -> None:
    quantize("sample", tmp_path / "out", load_recipe(recipe))
    assert compare(str(tmp_path / "out")).failures == []


@pytest.mark.parametrize("folder", [folder for folder in MORE if folder])
def test_checkpoints_of_the_developer_answer_as_on_the_cpu(folder: str) -> None:
    assert compare(folder).failures == []


def test_coded_embeddings_hold_their_codes_and_nothing_dense(headed: Path) -> None:
    before = torch.cuda.memory_allocated(CUDA)
    model = load_model(str(headed), device="cuda:0")
    stored = sum(p.stat().st_size for p in headed.glob("*.safetensors"))
    assert torch.cuda.memory_allocated(CUDA) - before < 1.1 * stored + 2**20
    assert isinstance(model.get_input_embeddings(), HLWQEmbedding)
    assert isinstance(model.lm_head, HLWQTiedLinear)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_look_up_gives_the_rows_of_the_cpu_and_replays_in_a_cuda_graph(headed: Path, dtype: str) -> None:
    exact = load_model(str(headed), device="cpu", dtype=dtype).get_input_embeddings()
    embedding = load_model(str(headed), device="cuda:0", dtype=dtype).get_input_embeddings()
    rows = embedding.num_embeddings
    ids, others = torch.arange(rows), torch.arange(rows).flip(0)
    held = ids.to(CUDA)
    with torch.inference_mode():
        assert torch.equal(embedding(held).cpu(), exact(ids))
        assert torch.equal(embedding.weight[7, :].cpu(), exact.weight[7])
        assert embedding(held[:0]).shape == (0, embedding.embedding_dim)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = embedding(held)
            row = embedding.weight[7, :]
        held.copy_(others)
        graph.replay()
        assert torch.equal(out.cpu(), exact(others))
        assert torch.equal(row.cpu(), exact.weight[7])
