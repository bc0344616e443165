"""Products with codes: against float64 on the decoded weights, for every width, scale, block size and odd shape."""

import pytest
import torch

from hlwq_kernels.codes import QuantizedWeight
from hlwq_kernels.decode import decode_rows_reference
from hlwq_kernels.linear import GATES, MAX_FUSED_TOKENS, coded_linear, multiply_codes, supports_gate
from tests.gpu.device import CUDA, needs_cuda
from tests.kernels.weights import BITS, tables

pytestmark = needs_cuda

TOLERANCE = {torch.bfloat16: 4e-3, torch.float16: 8e-4, torch.float32: 1e-5}


def random_weight(bits: int, n: int, scale: str, rows: int, columns: int, seed: int = 0) -> QuantizedWeight:
    """Any codes; scales and bases of a few powers of two around what weights have."""
    g = torch.Generator(CUDA).manual_seed(seed)
    blocks = -(-columns // n)
    codes = torch.randint(0, 256, (rows, blocks * n * bits // 8), dtype=torch.uint8, device=CUDA, generator=g)
    base = None
    if scale == "log8":
        scales = torch.randint(150, 256, (rows, blocks), dtype=torch.uint8, device=CUDA, generator=g)
        if blocks > 1:
            scales[:, blocks // 2] = 0
        base = (torch.rand(rows, device=CUDA, generator=g) + 0.01).bfloat16()
    else:
        scales = (torch.rand(rows, blocks, device=CUDA, generator=g) * n**0.5).half()
    return QuantizedWeight(codes, scales, base, torch.from_numpy(tables(bits).centroids).to(CUDA), n)


def decoded(weight: QuantizedWeight, columns: int) -> torch.Tensor:
    return decode_rows_reference(*weight, columns).double()


def activations(tokens: int, columns: int, dtype: torch.dtype, seed: int = 1) -> torch.Tensor:
    g = torch.Generator(CUDA).manual_seed(seed)
    x = torch.randn(tokens, columns, device=CUDA, generator=g)
    x[:, 0] *= 1000  # the channel that real models have
    return x.to(dtype)


def error(y: torch.Tensor, expected: torch.Tensor) -> float:
    return float((y.double() - expected).norm() / expected.norm())


def error_of_product(y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> float:
    """The same of y = x W^T, relative to the size such products have where few values happen to cancel out."""
    x, expected = x.double(), x.double() @ weight.T
    typical = x.norm() * weight.norm() / x.shape[1] ** 0.5
    return float((y.double() - expected).norm() / torch.maximum(expected.norm(), typical))


def shapes(n: int) -> list[tuple[int, int, int]]:
    """Rows, columns and tokens: odd ones, gemma4-26b's, many short rows, and rows too long for one token's kernel."""
    few = [(15, 3 * n, 2), (50, 5 * n - 3, 9), (40, 16384, 1), (33, 704, 8)]
    short = [(20000, n, 1), (20000, 2 * n, 1), (20000, 3 * n, 1)]
    return [(1, n, 1), (17, 7 * n - 5, 1), (33, 704, 1), (1408, 2816, 1), (300, 8192, 1), *short, *few]


@pytest.mark.parametrize(
    ("bits", "n", "scale"),
    [(bits, 64, "log8") for bits in BITS]
    + [(5, 32, "log8"), (5, 128, "log8"), (4, 256, "log8"), (5, 128, "fp16"), (3, 64, "fp16"), (8, 32, "fp16")],
)
def test_product_is_that_of_the_decoded_weight(bits: int, n: int, scale: str) -> None:
    for rows, columns, tokens in shapes(n):
        weight = random_weight(bits, n, scale, rows, columns)
        x = activations(tokens, columns, torch.bfloat16)
        y = coded_linear(x, *weight)
        assert error_of_product(y, x, decoded(weight, columns)) < TOLERANCE[torch.bfloat16], (rows, columns, tokens)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("tokens", [0, 1, 2, 7, 8, 9, 16, MAX_FUSED_TOKENS + 1, 200])
def test_any_number_of_tokens_of_any_type(tokens: int, dtype: torch.dtype) -> None:
    weight = random_weight(5, 64, "log8", 300, 1152)
    x, bias = activations(tokens, 1152, dtype), torch.randn(300, device=CUDA).to(dtype)
    y = coded_linear(x[:, None], *weight, bias)
    assert (y.shape, y.dtype) == ((tokens, 1, 300), dtype)
    if tokens:
        assert error(y[:, 0], x.double() @ decoded(weight, 1152).T + bias.double()) < TOLERANCE[dtype]


@pytest.mark.parametrize("rows", [16, 4096, 65536, 262144])
@pytest.mark.parametrize(("tokens", "scale"), [(1, "log8"), (7, "log8"), (16, "log8"), (9, "fp16")])
def test_every_way_of_sharing_rows_and_columns(rows: int, tokens: int, scale: str) -> None:
    weight = random_weight(5, 64, scale, rows, 2816)
    x = activations(tokens, 2816, torch.bfloat16)
    y = coded_linear(x, *weight)
    assert error(y, x.double() @ decoded(weight, 2816).T) < TOLERANCE[torch.bfloat16]


def test_large_and_small_activations_neither_overflow_nor_vanish() -> None:
    weight = random_weight(5, 64, "log8", 64, 2816)
    for size in (1e-20, 1e-6, 1e6, 1e20):
        x = (activations(3, 2816, torch.float32) * size).bfloat16()
        assert error(coded_linear(x, *weight), x.double() @ decoded(weight, 2816).T) < TOLERANCE[torch.bfloat16], size
    assert not coded_linear(torch.zeros(1, 2816, device=CUDA, dtype=torch.bfloat16), *weight).any()
    x[1, 5] = torch.nan
    y = coded_linear(x, *weight)
    assert y[1].isnan().all()
    assert y[0].isfinite().all()


def test_more_than_two_thousand_million_weights() -> None:
    rows, columns = 2**20, 2112
    weight = random_weight(5, 64, "log8", rows, columns)
    x = activations(1, columns, torch.bfloat16)
    y = coded_linear(x, *weight)
    for part in (slice(0, 100), slice(rows - 100, rows), slice(rows * 31 // 32, rows * 31 // 32 + 100)):
        some = weight._replace(codes=weight.codes[part], scales=weight.scales[part], base=weight.base[part])  # type: ignore[index]
        assert error(y[:, part], x.double() @ decoded(some, columns).T) < TOLERANCE[torch.bfloat16]


def test_a_cuda_graph_and_a_compiled_function_take_it() -> None:
    weight, x = random_weight(5, 64, "log8", 512, 2816), activations(1, 2816, torch.bfloat16)
    expected = coded_linear(x, *weight)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = coded_linear(x, *weight)
    x.copy_(activations(1, 2816, torch.bfloat16, seed=2))
    graph.replay()
    assert not torch.equal(y, expected)
    assert torch.equal(y, coded_linear(x, *weight))
    compiled = torch.compile(lambda v: coded_linear(v, *weight), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), y)


@pytest.mark.parametrize("before", ["copy", "fill", "kernel", "nothing"])
def test_a_graph_takes_it_after_whatever_comes_before(before: str) -> None:
    """Launches overlap with the kernel before them; before a copy or a fill there is none."""
    weight, x = random_weight(5, 64, "log8", 512, 2816), activations(1, 2816, torch.bfloat16)
    source, zeros = x.clone(), torch.zeros(2**20, device=CUDA)
    expected = coded_linear(x, *weight)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        if before == "copy":
            x.copy_(source)
        elif before == "fill":
            zeros.zero_()
        elif before == "kernel":
            torch.add(source, 0.0, out=x)
        y = coded_linear(x, *weight)
        again = coded_linear(torch.nn.functional.pad(y, (0, 2816 - 512)), *weight)
    for _ in range(20):
        if before in ("copy", "kernel"):
            x.fill_(torch.nan)
        graph.replay()
        assert torch.equal(y, expected)
        assert torch.equal(again, coded_linear(torch.nn.functional.pad(expected, (0, 2816 - 512)), *weight))


@pytest.mark.parametrize("gate", sorted(GATES))
@pytest.mark.parametrize("tokens", [1, 2, 9, 16])
def test_a_gate_is_applied_on_the_way_into_the_product(tokens: int, gate: str) -> None:
    weight = random_weight(5, 64, "log8", 300, 704)
    x = activations(tokens, 1408, torch.bfloat16)
    assert supports_gate(x, weight)
    first, second = x.double().chunk(2, dim=1)
    is_silu = gate == "silu"
    activation = torch.nn.functional.silu(first) if is_silu else torch.nn.functional.gelu(first, approximate="tanh")
    found = multiply_codes(x, weight, None, gate)
    assert error_of_product(found, activation * second, decoded(weight, 704)) < TOLERANCE[torch.bfloat16]
