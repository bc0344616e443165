"""The Triton decoder: the values of the reference, in a compiled function and in a CUDA graph, too."""

import pytest
import torch

from hlwq_kernels import decode_rows
from hlwq_kernels.decode import decode_rows_reference
from tests.gpu.device import CUDA, needs_cuda
from tests.kernels.weights import BITS, BLOCK_SIZES, tables

pytestmark = needs_cuda

Stored = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def random_stored(bits: int, n: int, scale: str, rows: int, blocks: int, seed: int = 0) -> Stored:
    """Any codes, scales and bases; the last row's scales are zero."""
    generator = torch.Generator(CUDA).manual_seed(seed)
    shape = (rows, blocks * n * bits // 8)
    codes = torch.randint(0, 256, shape, dtype=torch.uint8, device=CUDA, generator=generator)
    base = None
    if scale == "log8":
        scales = torch.randint(0, 256, (rows, blocks), dtype=torch.uint8, device=CUDA, generator=generator)
        base = (10.0 ** torch.linspace(-30, 30, rows, device=CUDA)).to(torch.bfloat16)
    else:
        size = 10.0 ** torch.linspace(-6, 4, rows, device=CUDA)[:, None]
        scales = (torch.rand(rows, blocks, device=CUDA, generator=generator) * size).half()
    scales[-1] = 0
    return codes, scales, base


def centroids(bits: int) -> torch.Tensor:
    return torch.from_numpy(tables(bits).centroids).to(CUDA)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize(
    ("bits", "n", "scale"),
    [(bits, 64, "log8") for bits in BITS] + [(5, n, "fp16") for n in BLOCK_SIZES] + [(7, 32, "log8")],
)
def test_decoded_values_are_those_of_the_reference(bits: int, n: int, scale: str) -> None:
    for rows, blocks in ((37, 3), (130, 11), (5, 128)):
        stored = random_stored(bits, n, scale, rows, blocks)
        for columns in (blocks * n, blocks * n - 5):
            expected = decode_rows_reference(*stored, centroids(bits), n, columns)
            assert same(decode_rows(*stored, centroids(bits), n, columns, torch.bfloat16), expected.to(torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_type_of_result_is_the_float32_value_rounded(dtype: torch.dtype) -> None:
    for scale in ("log8", "fp16"):
        stored = random_stored(5, 64, scale, 65, 44)
        expected = decode_rows_reference(*stored, centroids(5), 64, 44 * 64).to(dtype)
        assert same(decode_rows(*stored, centroids(5), 64, 44 * 64, dtype), expected)


@pytest.mark.parametrize("columns", [704, 2816, 8192])
def test_a_thousand_million_values_are_those_of_the_reference(columns: int) -> None:
    rows = 2**25 // columns
    for seed in range(10):
        stored = random_stored(5, 64, "log8", rows, columns // 64, seed)
        expected = decode_rows_reference(*stored, centroids(5), 64, columns).to(torch.bfloat16)
        assert same(decode_rows(*stored, centroids(5), 64, columns, torch.bfloat16), expected)


def test_a_compiled_function_takes_the_decoder_whole() -> None:
    stored, table = random_stored(5, 64, "log8", 48, 6), centroids(5)

    def multiply(x: torch.Tensor) -> torch.Tensor:
        return x @ decode_rows(*stored, table, 64, 384, torch.bfloat16).T

    x = torch.randn(4, 384, device=CUDA, dtype=torch.bfloat16)
    stored[2].copy_(torch.ones(48, device=CUDA))  # type: ignore[union-attr]
    assert same(torch.compile(multiply, fullgraph=True, backend="aot_eager")(x), multiply(x))


def test_a_cuda_graph_replays_the_decoder_on_new_codes() -> None:
    stored, table = random_stored(5, 64, "log8", 48, 6), centroids(5)
    decode_rows(*stored, table, 64, 384, torch.bfloat16)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = decode_rows(*stored, table, 64, 384, torch.bfloat16)
    stored[0].copy_(random_stored(5, 64, "log8", 48, 6, seed=1)[0])
    graph.replay()
    assert same(out, decode_rows_reference(*stored, table, 64, 384).to(torch.bfloat16))
