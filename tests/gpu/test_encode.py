"""The CUDA encoder: the bytes of the reference, which is compared on the same device and on the CPU."""

import pytest
import torch

from hlwq_kernels import EncodedRows, encode_rows
from hlwq_kernels.common import supports_nvrtc
from hlwq_kernels.encode import ScaleKind, encode_rows_reference
from tests.gpu.device import CUDA, made_rows, needs_cuda
from tests.kernels.weights import hostile_rows, lcg_rows, tables

pytestmark = needs_cuda

Kind = tuple[int, int, ScaleKind, bool]
DEFAULT: Kind = (5, 64, "log8", True)
CLASSIC: Kind = (5, 128, "fp16", False)
KINDS: list[Kind] = [
    *((bits, 64, "log8", True) for bits in range(2, 9)),
    (5, 64, "log8", False),
    CLASSIC,
    (3, 32, "log8", True),
    (8, 32, "fp16", True),
    (6, 128, "log8", True),
    (3, 256, "fp16", True),
    (4, 256, "log8", False),
]


def different(a: EncodedRows, b: EncodedRows) -> list[str]:
    """The fields that are not the same bytes, and where they first differ."""
    found = []
    for name, x, y in zip(EncodedRows._fields, a, b, strict=True):
        if x is None or y is None:
            assert x is y
        elif x.shape != y.shape or x.dtype != y.dtype:
            found.append(f"{name}: {x.shape} {x.dtype} for {y.shape} {y.dtype}")
        elif not torch.equal(*(t.contiguous().view(torch.uint8) for t in (x, y))):
            at = (x != y).nonzero()[:1].tolist()
            found.append(f"{name} at {at}: {x[x != y][:3].tolist()} for {y[x != y][:3].tolist()}")
    return found


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_hostile_rows_have_the_bytes_of_the_reference_on_the_cpu(kind: Kind) -> None:
    bits, n, scale, search = kind
    for columns in (2 * n, n + 65, 1, 20 * n):
        weight = hostile_rows(columns, seed=bits).to(torch.bfloat16)
        coded = encode_rows(weight.to(CUDA), tables(bits), n, scale, search)
        on_cpu = EncodedRows(*(None if t is None else t.cpu() for t in coded))
        assert not different(on_cpu, encode_rows_reference(weight, tables(bits), n, scale, search)), columns


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("kind", [DEFAULT, CLASSIC], ids=str)
def test_every_type_of_weight_has_the_bytes_of_the_reference(kind: Kind, dtype: torch.dtype) -> None:
    bits, n, scale, search = kind
    for weight in (hostile_rows(321).nan_to_num(0.0, 6e4, -6e4), lcg_rows()):
        narrow = weight.clamp(-6e4, 6e4).to(dtype) if dtype == torch.float16 else weight.to(dtype)
        coded = encode_rows(narrow.to(CUDA), tables(bits), n, scale, search)
        on_cpu = EncodedRows(*(None if t is None else t.cpu() for t in coded))
        assert not different(on_cpu, encode_rows_reference(narrow, tables(bits), n, scale, search))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 2.0**120])
def test_a_row_that_cannot_be_coded_is_marked_and_only_it(bad: float) -> None:
    weight = hostile_rows(192).to(CUDA, torch.bfloat16)
    good = encode_rows(weight, tables(5), 64)
    weight[2, 129] = bad
    coded = encode_rows(weight, tables(5), 64)
    assert coded.energy.isnan().nonzero().tolist() == [[2]]
    assert torch.equal(coded.codes[3:], good.codes[3:])
    assert torch.equal(coded.error[3:], good.error[3:])


def test_a_slice_that_starts_anywhere_has_the_bytes_it_has_in_the_whole() -> None:
    flat = torch.randn(40 * 192 + 3, device=CUDA).to(torch.bfloat16)
    whole = flat[3:].reshape(40, 192)
    assert not different(encode_rows(whole, tables(5), 64), encode_rows_reference(whole, tables(5), 64, "log8", True))
    part = encode_rows(whole[7:9], tables(5), 64)
    assert torch.equal(part.codes, encode_rows(whole, tables(5), 64).codes[7:9])


def test_the_encoder_that_was_compiled_is_the_one_that_runs() -> None:
    assert supports_nvrtc(CUDA)


def test_no_rows_are_no_codes() -> None:
    coded = encode_rows(torch.empty(0, 192, device=CUDA, dtype=torch.bfloat16), tables(5), 64)
    assert coded.codes.shape == (0, 120)
    assert coded.error.shape == (0,)


@pytest.mark.parametrize(
    ("kind", "columns", "weights"),
    [
        (DEFAULT, 2816, 400_000_000),
        (DEFAULT, 704, 150_000_000),
        ((5, 64, "log8", False), 2112, 300_000_000),
        (CLASSIC, 8192, 150_000_000),
        ((4, 64, "log8", True), 1152, 100_000_000),
    ],
    ids=str,
)
def test_a_thousand_million_weights_have_the_bytes_of_the_reference(kind: Kind, columns: int, weights: int) -> None:
    bits, n, scale, search = kind
    for weight in made_rows(weights, columns, torch.bfloat16, seed=columns):
        coded = encode_rows(weight, tables(bits), n, scale, search)
        assert not different(coded, encode_rows_reference(weight, tables(bits), n, scale, search))


def test_one_row_of_a_million_columns_has_the_bytes_of_the_reference() -> None:
    weight = torch.randn(1, 2**20, device=CUDA)
    assert not different(encode_rows(weight, tables(5), 64), encode_rows_reference(weight, tables(5), 64, "log8", True))
