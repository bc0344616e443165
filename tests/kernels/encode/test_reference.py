"""The encoder: the bytes of its definition, on every kind of row."""

import numpy as np
import pytest
import torch

from hlwq_kernels import SCALE_STEPS, EncodedRows, encode_rows, prepare_encode, unpack_codes
from hlwq_kernels.encode import ScaleKind, encode_rows_reference
from hlwq_kernels.encode.numba_cpu import encode_rows_numba
from tests.kernels.weights import (
    BITS,
    BLOCK_SIZES,
    decoded,
    digest,
    hostile_rows,
    lcg_rows,
    same_bytes,
    sylvester,
    tables,
)

KINDS: tuple[ScaleKind, ...] = ("log8", "fp16")

# (bits, block size, scale, search): digests of codes, scales and base, and decoded values, of lcg_rows().
GOLDEN: dict[tuple[int, int, ScaleKind, bool], tuple[str, str, str]] = {
    (2, 64, "log8", True): ("af84c653d399c86c", "70c8e910e52b74a0", "8e1a756dbc50af13"),
    (3, 64, "log8", True): ("b4baabb495a5aea2", "365a620e464fb626", "0ac7745b056c05ff"),
    (4, 64, "log8", True): ("bd551fd049addbad", "7fa9cb39b7e778fe", "8794393cd88c5366"),
    (5, 64, "log8", True): ("081e98a039ea31b3", "f2e0a93dce02f2ad", "f2f6d4595204589d"),
    (6, 64, "log8", True): ("c9dfd70d7fb358f4", "1a03a0d32ca8554e", "f952cd50af2db4e4"),
    (7, 64, "log8", True): ("5f714c4f6da7098b", "445c0471a2e88e04", "36c26ae8c0b04aa0"),
    (8, 64, "log8", True): ("bc1203d0dae1b515", "ac3a8440e3a7182b", "efd4bdd5f2acbc41"),
    (5, 128, "fp16", False): ("b316f1c9143e937d", "5481150dd95b2e5f", "7eb64065db50c8fc"),
    (4, 128, "fp16", False): ("5f011f9ed8c8dce4", "5481150dd95b2e5f", "aaef949778665ac6"),
    (4, 32, "log8", False): ("9dfbee630b223ebd", "4fe8cf3234d46cb8", "63c119ae05946538"),
    (3, 256, "fp16", True): ("12238276bb13bace", "f190e2bc61a6d3d6", "84708854aebd3325"),
    (6, 256, "log8", True): ("7c88a1a3c498f1de", "77a9ca11b5217963", "3517cb7882838814"),
    (8, 32, "fp16", True): ("faeafe0255b10d8b", "281e2cf639263e4a", "ec43343d25994eb9"),
}


def encode(weight: torch.Tensor, bits: int, n: int, scale: ScaleKind = "log8", search: bool = True) -> EncodedRows:
    return encode_rows(weight, tables(bits), n, scale, search)


def stored_scales(coded: EncodedRows, n: int) -> np.ndarray:
    """The scales s of docs/format.md, float64 (rows, blocks)."""
    if coded.base is None:
        return coded.scales.double().numpy() / np.sqrt(n)
    return coded.base.double().numpy()[:, None] * SCALE_STEPS.astype(np.float64)[coded.scales.numpy()]


def rotated(weight: torch.Tensor, n: int) -> np.ndarray:
    """The rotated blocks, float64 (rows, blocks, n)."""
    padded = np.pad(weight.double().numpy(), ((0, 0), (0, -weight.shape[1] % n)))
    return padded.reshape(len(padded), -1, n) @ sylvester(n) / np.sqrt(n)


@pytest.mark.parametrize("n", BLOCK_SIZES)
@pytest.mark.parametrize("bits", BITS)
def test_compiled_encoder_makes_the_bytes_of_the_reference(bits: int, n: int) -> None:
    table = tables(bits)
    for columns in (2 * n, n + 65, 1):
        weight = hostile_rows(columns, seed=bits)
        for scale in KINDS:
            for search in (True, False):
                compiled = encode_rows_numba(weight, table, n, scale, search)
                expected = encode_rows_reference(weight, table, n, scale, search)
                assert same_bytes(compiled, expected), (columns, scale, search)
                np.testing.assert_allclose(compiled.energy, expected.energy, rtol=1e-6)
                np.testing.assert_allclose(compiled.error, expected.error, rtol=1e-6)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 2.0**120])
def test_both_encoders_mark_a_row_that_cannot_be_coded_and_only_it(bad: float) -> None:
    weight = hostile_rows(130)
    good = encode_rows_reference(weight, tables(5), 64, "log8", True)
    weight[2, 129] = bad
    for encoder in (encode_rows_numba, encode_rows_reference):
        coded = encoder(weight, tables(5), 64, "log8", True)
        assert coded.energy.isnan().nonzero().tolist() == [[2]]
        assert torch.equal(coded.codes[3:], good.codes[3:])
        assert torch.equal(coded.error[3:], encoder(weight[3:], tables(5), 64, "log8", True).error)


@pytest.mark.parametrize(("scheme", "digests"), GOLDEN.items(), ids=str)
def test_bytes_are_those_of_every_other_machine(
    scheme: tuple[int, int, ScaleKind, bool], digests: tuple[str, str, str]
) -> None:
    bits, n, scale, search = scheme
    weight = lcg_rows()
    coded = encode(weight, bits, n, scale, search)
    values = decoded(coded, tables(bits), n, weight.shape[1])
    assert (digest(coded.codes), digest(coded.scales, coded.base), digest(values)) == digests


def test_golden_weights_are_made_of_the_same_numbers_everywhere() -> None:
    assert digest(lcg_rows()) == "daec8e1feffb4d31"


@pytest.mark.parametrize("scale", KINDS)
def test_the_type_that_holds_the_values_does_not_matter(scale: ScaleKind) -> None:
    narrow = (torch.randn(6, 130, generator=torch.Generator().manual_seed(3)) * 64).round() / 64
    narrow = narrow.clamp(-3.98, 3.98)
    narrow = narrow.to(torch.bfloat16).to(torch.float32)
    assert torch.equal(narrow.to(torch.float16).to(torch.float32), narrow)
    single = encode(narrow, 5, 64, scale)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert same_bytes(encode(narrow.to(dtype), 5, 64, scale), single), dtype


@pytest.mark.parametrize("scale", KINDS)
@pytest.mark.parametrize("search", [True, False])
def test_a_huge_row_leaves_the_bytes_of_its_neighbours_alone(scale: ScaleKind, search: bool) -> None:
    weight = torch.randn(5, 192, generator=torch.Generator().manual_seed(4)) * 1e-3
    before = encode(weight, 5, 64, scale, search)
    weight[2] *= 1e6
    after = encode(weight, 5, 64, scale, search)
    others = [0, 1, 3, 4]
    assert torch.equal(after.codes[others], before.codes[others])
    assert torch.equal(after.scales[others], before.scales[others])
    if scale == "log8":
        assert torch.equal(after.base[others], before.base[others])


@pytest.mark.parametrize("scale", KINDS)
def test_a_slice_of_rows_has_the_bytes_it_has_in_the_whole(scale: ScaleKind) -> None:
    weight = hostile_rows(130)
    whole, part = encode(weight[:10], 5, 64, scale), encode(weight[3:7], 5, 64, scale)
    assert torch.equal(part.codes, whole.codes[3:7])
    assert torch.equal(part.scales, whole.scales[3:7])
    assert torch.equal(part.error, whole.error[3:7])


@pytest.mark.parametrize("scale", KINDS)
def test_strides_of_the_weight_do_not_matter(scale: ScaleKind) -> None:
    weight = hostile_rows(130)
    assert same_bytes(encode(weight.T.contiguous().T, 5, 64, scale), encode(weight, 5, 64, scale))


def test_a_power_of_two_of_a_weight_changes_only_the_base() -> None:
    weight = torch.randn(4, 192, generator=torch.Generator().manual_seed(5))
    once, scaled = encode(weight, 5, 64), encode(weight * 2.0**70, 5, 64)
    assert torch.equal(scaled.codes, once.codes)
    assert torch.equal(scaled.scales, once.scales)
    assert torch.equal(scaled.base.float(), once.base.float() * 2.0**70)


@pytest.mark.parametrize("search", [True, False])
@pytest.mark.parametrize("scale", KINDS)
@pytest.mark.parametrize("bits", [2, 5, 8])
def test_each_code_is_that_of_the_centroid_nearest_to_z_over_s(bits: int, scale: ScaleKind, search: bool) -> None:
    n, weight = 64, torch.randn(6, 160, generator=torch.Generator().manual_seed(6))
    coded, c = encode(weight, bits, n, scale, search), tables(bits).centroids.astype(np.float64)
    u = rotated(weight, n) / stored_scales(coded, n)[..., None]
    codes = unpack_codes(coded.codes, bits).numpy().reshape(u.shape)
    distance = abs(u - c[codes])
    nearest = abs(u[..., None] - c).min(axis=-1)
    assert (distance - nearest).max() < 1e-5, "float32 may only decide what lies on a boundary"


@pytest.mark.parametrize("scale", KINDS)
@pytest.mark.parametrize("bits", [2, 5, 8])
def test_the_search_errs_within_a_thousandth_of_its_best_candidates(bits: int, scale: ScaleKind) -> None:
    n, weight = 64, torch.randn(32, 256, generator=torch.Generator().manual_seed(8))
    coded, c = encode(weight, bits, n, scale), tables(bits).centroids.astype(np.float64)
    z = rotated(weight, n)
    rms = np.sqrt((z**2).mean(axis=-1))
    if coded.base is None:
        candidates = [(rms * 8 * 2 ** (j / 32)).astype(np.float16).astype(np.float64) / 8 for j in range(-16, 13)]
    else:
        base = coded.base.double().numpy()[:, None]
        first = np.floor(np.log2(rms / base) * 32)
        candidates = [base * 2 ** (np.minimum(first + j, 0) / 32) for j in range(-16, 13)]

    def error(s: np.ndarray) -> np.ndarray:
        return (abs(z[..., None] - s[..., None, None] * c).min(axis=-1) ** 2).sum(axis=-1)

    best = np.min([error(s) for s in candidates], axis=0)
    assert error(stored_scales(coded, n)).sum() < 1.001 * best.sum()


def test_without_search_fp16_scales_are_the_norms_of_the_blocks() -> None:
    weight = torch.randn(4, 256, generator=torch.Generator().manual_seed(9))
    norms = weight.double().reshape(4, 2, 128).norm(dim=-1)
    assert torch.equal(encode(weight, 5, 128, "fp16", False).scales, norms.to(torch.float16))


def test_without_search_log8_scales_are_the_steps_nearest_to_the_rms() -> None:
    weight = torch.randn(4, 256, generator=torch.Generator().manual_seed(10))
    s = stored_scales(encode(weight, 5, 64, search=False), 64)
    rms = weight.double().reshape(4, 4, 64).square().mean(dim=-1).sqrt().numpy()
    assert abs(np.log2(s / rms)).max() < 0.5 / 32 + 1e-6


def test_base_is_the_least_bf16_that_leaves_room_for_every_candidate() -> None:
    weight = torch.cat([hostile_rows(192)[:2], torch.ones(1, 192)])
    z = rotated(weight, 64)
    rms, outermost = np.sqrt((z**2).mean(axis=-1)), abs(z).max(axis=-1) / np.float64(tables(5).centroids[-1])
    wanted = np.maximum(rms * 2 ** (12 / 32), outermost).max(axis=1)
    base = encode(weight, 5, 64).base.double().numpy()
    ratio = base / wanted
    assert ratio.min() >= 1 - 1e-6
    assert ratio.max() < 1 + 2.0**-7, "one step of bf16"


def test_a_coefficient_on_a_boundary_takes_the_lower_code() -> None:
    codes = unpack_codes(encode(torch.full((1, 64), 0.25), 5, 64).codes, 5)[0].tolist()
    assert codes == [31] + [15] * 63, "a constant rotates to one coefficient and exact zeros, the middle boundary"


def test_zeros_have_zero_codes_scales_base_and_error() -> None:
    for scale in KINDS:
        coded = encode(torch.zeros(2, 100), 5, 64, scale)
        assert not any(t.any() for t in coded if t is not None)


def test_rows_below_the_smallest_are_coded_as_zeros() -> None:
    weight = torch.stack([torch.full((64,), 2.0**-110), torch.full((64,), 2.0**-111)])
    coded = encode(weight, 5, 64)
    assert coded.scales.bool().tolist() == [[True], [False]]
    assert coded.energy.tolist() == [64 * 2.0**-220, 0.0]


def test_a_block_far_below_its_row_takes_the_step_that_errs_less() -> None:
    weight = torch.randn(1, 192, generator=torch.Generator().manual_seed(11))
    weight[0, 64:128] *= 1e-2
    weight[0, 128:] *= 1e-6
    scales = encode(weight, 5, 64).scales[0].tolist()
    assert scales[0] > 200
    assert scales[1] > 0
    assert scales[2] == 0, "the least step would add more error than it removes"


@pytest.mark.parametrize("search", [True, False])
def test_an_fp16_norm_that_overflows_is_told_by_an_infinite_error(search: bool) -> None:
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(12))
    weight[1] *= 1e6
    for encoder in (encode_rows_numba, encode_rows_reference):
        assert encoder(weight, tables(5), 64, "fp16", search).error.isinf().tolist() == [False, True, False]


@pytest.mark.parametrize("scale", KINDS)
def test_a_prepared_call_encodes_what_its_weight_then_holds_into_memory_that_is_there(scale: ScaleKind) -> None:
    weight = torch.zeros(7, 100, dtype=torch.bfloat16)
    made = encode_rows(weight, tables(5), 64, scale)
    out = EncodedRows(*(None if t is None else torch.full_like(t, 7) for t in made))
    encode_again = prepare_encode(weight, tables(5), 64, scale, True, out)
    for seed in range(2):
        weight.copy_(torch.randn(7, 100, generator=torch.Generator().manual_seed(seed)))
        encode_again()
        expected = encode_rows(weight, tables(5), 64, scale)
        assert same_bytes(out, expected)
        assert torch.equal(out.error, expected.error)
        assert torch.equal(out.energy, expected.energy)
        assert expected.error.any()
