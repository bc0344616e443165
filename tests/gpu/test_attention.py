"""The quantized cache on a CUDA device: bytes of the reference, and attention over the decoded cache."""

import pytest
import torch

from hlwq_cli.runtime import HLWQModel
from hlwq_cli.runtime.kv import KVBits, cache_argument, code_kv_cache, coded_cache
from hlwq_kernels.attention import (
    AttentionParams,
    QuantizedKV,
    attend,
    attend_reference,
    encode_kv,
    encode_kv_reference,
)
from tests.gpu.device import CUDA, needs_cuda
from tests.kernels.attention.kv_cases import Case, Layout, expected, make_case, tables
from tests.kernels.weights import BITS
from tests.support.builders import TEXT

pytestmark = needs_cuda

LAYOUTS = [
    (2, 1, 64, 64), (2, 4, 128, 128), (2, 8, 512, 512), (1, 8, 256, 256), (1, 40, 128, 128), (2, 3, 96, 80),
    (1, 16, 512, 512), (1, 16, 128, 128), (1, 2, 320, 384), (1, 3, 192, 128),
]  # fmt: skip
ROOM = {torch.float32: 3e-3, torch.float16: 4e-3, torch.bfloat16: 1.2e-2}
"""Largest error over the largest value: float16 products within, and the result's own rounding."""


def check(case: Case, params: AttentionParams) -> None:
    found, exactly = attend(case.query, case.keys, case.values, case.seen, params), expected(case, params)
    assert found.dtype == case.query.dtype
    off = (found.double() - exactly).abs().max() / exactly.abs().max()
    assert off < ROOM[case.query.dtype], float(off)


def params(layout: Layout, **others: object) -> AttentionParams:
    return AttentionParams(layout[2] ** -0.5, **others)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256, 512])
def test_coded_tokens_have_the_bytes_of_the_reference(bits: int, dim: int) -> None:
    generator = torch.Generator(CUDA).manual_seed(bits)
    x = (
        torch.randn(3, 1000, dim, device=CUDA, generator=generator)
        * 10.0 ** torch.linspace(-9, 9, 1000, device=CUDA)[:, None]
    )
    x[0, 0], x[0, 1, 3], x[0, 2, 3] = 0.0, torch.nan, torch.inf
    x[1, ::2] = x[1, ::2] * 1e-20
    x[2, :100, 1:] = 0.0
    for dtype in (torch.float32, torch.bfloat16):
        codes, scales = encode_kv(x.to(dtype), tables(bits, "cuda"))
        expected_codes, expected_scales = encode_kv_reference(x.to(dtype), tables(bits, "cuda"))
        assert torch.equal(scales, expected_scales)
        assert torch.equal(codes, expected_codes)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_head_layout_and_type(layout: Layout, dtype: torch.dtype) -> None:
    check(make_case(layout, 1500, 90, dtype=dtype, device="cuda"), params(layout))


@pytest.mark.parametrize("keys", BITS)
@pytest.mark.parametrize("values", BITS)
def test_every_width(keys: int, values: int) -> None:
    layout = (2, 4, 128, 128)
    check(make_case(layout, 700, 64, (keys, values), dtype=torch.bfloat16, device="cuda"), params(layout))


@pytest.mark.parametrize("dim", [64, 512])
@pytest.mark.parametrize("coded", [0, 1, 31, 32, 33, 127, 128, 129, 1023, 1025, 20000])
def test_lengths_round_the_edges_of_tiles(coded: int, dim: int) -> None:
    layout = (2, 2, dim, dim)
    for exact in (1, 64, 95):
        check(make_case(layout, coded, exact, dtype=torch.bfloat16, device="cuda"), params(layout))


@pytest.mark.parametrize("layout", LAYOUTS[:3], ids=str)
def test_masks_and_softcapping(layout: Layout) -> None:
    case = make_case(layout, 900, 70, dtype=torch.bfloat16, device="cuda")
    mask = torch.ones(2, 1, 1, 970, dtype=torch.bool, device=CUDA)
    mask[1, ..., :500] = False
    check(case, params(layout, mask=mask))
    check(case, params(layout, mask=mask, softcap=1.5))
    mask[0] = False
    found = attend(case.query, case.keys, case.values, case.seen, params(layout, mask=mask))
    assert not found[0].any()
    assert found[1].isfinite().all()


@pytest.mark.parametrize("queries", [2, 70])
def test_several_queries(queries: int) -> None:
    layout = (2, 4, 128, 128)
    check(make_case(layout, 1500, 90, queries=queries, dtype=torch.bfloat16, device="cuda"), params(layout))


def random_cache(heads: int, coded: int, dim: int, bits: int) -> QuantizedKV:
    """Any codes, of heads whose root mean squares are from 1/2 to 2."""
    codes = torch.randint(0, 256, (1, heads, coded, dim * bits // 8), dtype=torch.uint8, device=CUDA)
    scales = torch.randint(120, 137, (1, heads, coded), dtype=torch.uint8, device=CUDA)
    exact = torch.randn(1, heads, 64, dim, device=CUDA)
    return QuantizedKV(codes, scales, coded, exact, coded, tables(bits, "cuda"))


def test_caches_of_more_bytes_than_32_bits_can_count() -> None:
    torch.manual_seed(0)
    tokens = 4_300_000
    keys, values = random_cache(2, tokens, 512, 4), random_cache(2, tokens, 512, 4)
    assert keys.codes.nbytes > 2**31
    query = torch.randn(1, 4, 1, 512, device=CUDA) * 0.2
    seen, attention = torch.tensor([tokens]), AttentionParams(0.2)
    found, exactly = (f(query, keys, values, seen, attention) for f in (attend, attend_reference))
    torch.testing.assert_close(found, exactly, rtol=0, atol=float(exactly.abs().max()) * 5e-3)


def test_a_compiled_function_takes_attention_whole() -> None:
    case = make_case((2, 4, 128, 128), 300, 70, dtype=torch.bfloat16, device="cuda")

    def twice(query: torch.Tensor) -> torch.Tensor:
        return attend(query, case.keys, case.values, case.seen, AttentionParams(0.1)) * 2

    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(case.query), twice(case.query))


def test_a_cuda_graph_replays_attention_on_new_codes() -> None:
    case, other = (
        make_case((2, 4, 128, 128), 300, 70, dtype=torch.bfloat16, device="cuda", seed=seed) for seed in (0, 1)
    )
    attend(case.query, case.keys, case.values, case.seen, AttentionParams(0.1))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attend(case.query, case.keys, case.values, case.seen, AttentionParams(0.1))
    for mine, its in zip((case.keys, case.values), (other.keys, other.values), strict=True):
        for name in ("codes", "scales", "exact"):
            getattr(mine, name).copy_(getattr(its, name))
    graph.replay()
    torch.testing.assert_close(out, attend(case.query, other.keys, other.values, case.seen, AttentionParams(0.1)))


@pytest.mark.parametrize("layout", [(2, 4, 128, 128), (1, 8, 512, 512)], ids=str)
def test_a_graph_captured_once_reads_lengths_from_the_device(layout: Layout) -> None:
    whole = make_case(layout, 3000, 90, dtype=torch.bfloat16, device="cuda")
    lengths, mask = torch.tensor([0, 1], device=CUDA), torch.ones(2, 1, 1, 3200, dtype=torch.bool, device=CUDA)
    mask[1, ..., :5] = False
    rings = [torch.zeros_like(side.exact[:, :, :1]).repeat(1, 1, 96, 1) for side in (whole.keys, whole.values)]
    keys, values = (
        side._replace(coded=3000, first=3000, exact=ring, lengths=lengths)
        for side, ring in zip((whole.keys, whole.values), rings, strict=True)
    )

    def step() -> torch.Tensor:
        return attend(whole.query, keys, values, whole.seen, params(layout, mask=mask))

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for coded, exact in ((0, 6), (32, 64), (160, 95), (3000, 90), (1024, 70)):
        for ring, side in zip(rings, (whole.keys, whole.values), strict=True):
            ring[:, :, torch.arange(coded, coded + exact) % 96] = side.exact[:, :, torch.arange(exact) % 90]
        lengths.copy_(torch.tensor([coded, exact]))
        graph.replay()
        exactly = attend_reference(
            whole.query.float(),
            keys.resolved(),
            values.resolved(),
            torch.tensor([coded]),
            params(layout, mask=mask[..., : coded + exact]),
        )
        off = (out.float() - exactly).abs().max() / exactly.abs().max()
        assert off < ROOM[torch.bfloat16], (coded, exact, float(off))


def test_a_model_reads_a_text_alike_whole_and_token_by_token() -> None:
    import transformers as t

    torch.manual_seed(0)
    model = t.LlamaForCausalLM(t.LlamaConfig(**TEXT)).to(CUDA).eval()
    code_kv_cache(model, KVBits(4, 3))
    ids = torch.randint(3, 300, (2, 260), device=CUDA)
    cache, found = coded_cache(model.config, KVBits(4, 3)), []
    with torch.inference_mode():
        whole = model(input_ids=ids).logits
        for start, stop in [(0, 200), *((i, i + 1) for i in range(200, 260))]:
            found.append(model(input_ids=ids[:, start:stop], **cache_argument(model, cache)).logits)
    torch.testing.assert_close(torch.cat(found, dim=1), whole, rtol=0, atol=float(whole.abs().max()) * 5e-3)


def test_the_sample_answers_through_codes() -> None:
    model = HLWQModel.from_pretrained("sample", device="cuda:0", kv_cache_nbits=8)
    dense = HLWQModel.from_pretrained("sample", device="cuda:0")
    prompts = ["My fellow citizens, " * 60, "The state of our union is"]
    for answer, expected_answer in zip(
        *(m.generate(prompts, max_new_tokens=8, chat=False) for m in (model, dense)), strict=True
    ):
        assert answer.split()[:3] == expected_answer.split()[:3]
