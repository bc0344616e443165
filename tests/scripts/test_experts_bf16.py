"""The bf16 peer of the experts kernels computes the layer; its source is compiled for the CPU."""

import pytest
import torch

from hlwq_kernels.linear import lay_out
from scripts.bench import experts_bf16 as peer
from tests.support.cuda_on_cpu import addresses, library

_LAUNCH = """
static i64 a[9];
extern "C" void launch(unsigned threads, const i64* arguments) {
    memcpy(a, arguments, sizeof(a));
    run_grid({(unsigned)a[6], (unsigned)a[7], 1}, threads, []() {
        NAME((const void*)a[0], (const u16*)a[1], a[2], (const i64*)a[3], (const float*)a[4], (void*)a[5]);
    });
}
"""


@pytest.mark.parametrize(("lane", "ahead", "batch"), [(8, 4, 4), (16, 2, 6), (32, 2, 4)])
def test_two_launches_give_the_layer(lane: int, ahead: int, batch: int) -> None:
    seed = torch.Generator().manual_seed(lane)
    up, down = (torch.randn(shape, generator=seed).bfloat16() for shape in ((5, 128, 160), (5, 160, 64)))
    x, topk_ids = torch.randn(1, 160, generator=seed).bfloat16() / 20, torch.tensor([[4, 0, 2]])
    topk_weights = torch.rand(1, 3, generator=seed)

    def run(kind: int, x: torch.Tensor, weights: torch.Tensor, y: torch.Tensor) -> None:
        _, rows, columns = weights.shape
        layout = peer.Layout(lane, ahead, batch, 64, 128)
        shape = lay_out(rows, columns // lane * (3 if kind == 2 else 1), 1, 2, layout.threads, layout.resident)
        built = library(peer.SOURCE, (*peer.macros(kind, layout, shape, columns, 3), ("__shared__", "static")), _LAUNCH)
        grid = (2, 3) if kind == 1 else (3, 1)
        built.launch(shape.threads, addresses([x, weights, rows, topk_ids, topk_weights, y, *grid]))

    hidden, y = torch.full((3, 128), torch.nan), torch.full((1, 160), torch.nan).bfloat16()
    run(1, x, up, hidden)
    run(2, hidden, down, y)
    true = up[topk_ids[0]].double() @ x[0].double()
    assert torch.allclose(hidden.double(), true, rtol=1e-4, atol=1e-4)
    a, b = true.chunk(2, dim=-1)
    inner = torch.nn.functional.gelu(a, approximate="tanh") * b
    out = ((down[topk_ids[0]].double() @ inner[..., None])[..., 0] * topk_weights[0, :, None].double()).sum(0)
    assert torch.allclose(y[0].double(), out, rtol=1e-2, atol=2e-2)
