"""A cache in codes, as layers: what is coded when, and every way in which transformers changes a cache."""

import copy

import pytest
import torch

from hlwq_cli.errors import UnsupportedError, UsageError
from hlwq_cli.runtime.kv import GROUP, WINDOW, CodedLayer, KVBits, coded_cache, coded_tokens

HEADS, DIM = 2, 64


def states(tokens: int, batch: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    k, v = torch.randn(2, batch, HEADS, tokens, DIM, generator=generator)
    return k, v


def filled(tokens: int, batch: int = 2, widths: str = "4,3") -> CodedLayer:
    layer = CodedLayer(KVBits.parse(widths))
    layer.update(*states(tokens, batch))
    return layer


def contents(layer: CodedLayer) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values as attention would see them: those of an update with no tokens."""
    keys, values = layer.update(*states(0, layer.key_store.codes.shape[0]))
    return keys.tokens.decoded(), values.tokens.decoded()


def same(a: CodedLayer, b: CodedLayer) -> bool:
    return all(torch.equal(x, y) for x, y in zip(contents(a), contents(b), strict=True))


@pytest.mark.parametrize("length", [1, WINDOW, WINDOW + GROUP - 1, WINDOW + GROUP, 300])
def test_all_but_the_window_is_coded_in_whole_groups(length: int) -> None:
    layer = filled(length)
    exact = length - layer.coded
    assert layer.coded == coded_tokens(length)
    assert layer.coded % GROUP == 0
    assert min(length, WINDOW) <= exact < WINDOW + GROUP
    k, v = states(length)
    found = contents(layer)
    assert torch.equal(found[0][:, :, layer.coded :], k[:, :, layer.coded :])
    assert torch.equal(found[1][:, :, layer.coded :], v[:, :, layer.coded :])
    if layer.coded:
        assert 0 < float((found[0] - k).square().sum() / k[:, :, : layer.coded].square().sum()) < 0.008
        assert 0 < float((found[1] - v).square().sum() / v[:, :, : layer.coded].square().sum()) < 0.031


@pytest.mark.parametrize("cuts", [[300], [1] * 300, [97, 1, 1, 130, 71], [31, 33, 64, 172]])
def test_the_same_tokens_make_the_same_cache_in_any_pieces(cuts: list[int]) -> None:
    layer, start = CodedLayer(KVBits(4, 3)), 0
    k, v = states(300)
    seen = []
    for cut in cuts:
        keys, _ = layer.update(k[:, :, start : start + cut], v[:, :, start : start + cut])
        seen += keys.seen.tolist()
        start += cut
    assert same(layer, filled(300))
    assert seen == [coded_tokens(n) for n in range(1, 301)]


def test_a_code_is_never_written_again() -> None:
    layer = filled(200)
    before = layer.key_store.codes[:, :, : layer.coded].clone()
    for seed in range(150):
        layer.update(*states(1, seed=seed + 1))
    assert torch.equal(layer.key_store.codes[:, :, : before.shape[2]], before)


def test_the_store_grows_by_an_eighth_and_no_more() -> None:
    layer = filled(4096)
    assert layer.key_store.scales.shape[-1] == coded_tokens(4096)
    for _ in range(GROUP):
        layer.update(*states(1))
    assert layer.key_store.scales.shape[-1] == coded_tokens(4096) + coded_tokens(4096) // 8 // GROUP * GROUP


def test_bytes_are_those_of_codes_scales_and_exact_tokens() -> None:
    layer = filled(4096)
    heads, coded = 2 * HEADS, coded_tokens(4096)
    assert layer.nbytes == heads * (coded * (DIM * 7 // 8 + 2) + 2 * (WINDOW + GROUP) * DIM * 4)
    layer.reset()
    assert layer.nbytes == 0


@pytest.mark.parametrize("removed", [1, 40, 70, 150, 199])
def test_cropped_and_filled_again_a_cache_goes_on(removed: int) -> None:
    layer = filled(200)
    whole = contents(layer)
    layer.crop(-removed)
    assert layer.get_seq_length() == 200 - removed
    for kept, before in zip(contents(layer), whole, strict=True):
        assert torch.equal(kept, before[:, :, : 200 - removed])
    k, v = states(200)
    keys, _ = layer.update(k[:, :, 200 - removed :], v[:, :, 200 - removed :])
    assert keys.shape == (2, HEADS, 200, DIM)
    assert keys.seen[0] == max(min(coded_tokens(200), 200 - removed), coded_tokens(201 - removed))
    for now, before in zip(contents(layer), whole, strict=True):
        assert torch.equal(now, before)


def test_cropped_to_nothing_or_by_nothing() -> None:
    layer = filled(200)
    layer.crop(0)
    assert layer.get_seq_length() == 200
    layer.crop(-200)
    assert layer.get_seq_length() == 0
    layer.update(*states(130))
    assert same(layer, filled(130))


def test_reset_and_used_again_a_cache_is_as_new() -> None:
    layer = filled(200)
    layer.reset()
    layer.update(*states(150))
    assert same(layer, filled(150))


@pytest.mark.parametrize("length", [50, 200])
def test_sequences_are_reordered_repeated_and_selected(length: int) -> None:
    whole = contents(filled(length, batch=3))
    order = torch.tensor([2, 0, 2])
    layer = filled(length, batch=3)
    layer.reorder_cache(order)
    assert torch.equal(contents(layer)[0], whole[0][order])
    layer.batch_select_indices(torch.tensor([1]))
    layer.batch_repeat_interleave(3)
    assert torch.equal(contents(layer)[1], whole[1][[0, 0, 0]])


def test_a_copy_goes_its_own_way() -> None:
    layer = filled(200)
    whole = contents(layer)
    other = copy.deepcopy(layer)
    for _ in range(100):
        other.update(*states(1, seed=5))
    assert torch.equal(contents(layer)[0], whole[0])
    assert torch.equal(contents(other)[0][:, :, :128], whole[0][:, :, :128])


def test_what_was_cached_in_inference_mode_can_be_added_to_outside() -> None:
    with torch.inference_mode():
        layer = filled(70)
        layer.reorder_cache(torch.tensor([0, 1]))
    for _ in range(100):
        layer.update(*states(1))
    assert layer.get_seq_length() == 170


def test_beams_need_no_tokens() -> None:
    layer = CodedLayer(KVBits(4, 4))
    layer.reorder_cache(torch.tensor([0]))
    layer.crop(-3)
    layer.reset()
    assert layer.get_seq_length() == 0
    assert layer.get_mask_sizes(5) == (5, 0)


def test_sliding_layers_stay_as_they_are() -> None:
    from transformers import AutoConfig

    from hlwq_cli.samples import resolve_model

    config = AutoConfig.from_pretrained(resolve_model("sample"))
    kinds = config.get_text_config().layer_types
    cache = coded_cache(config, KVBits(4, 4))
    assert [isinstance(x, CodedLayer) for x in cache.layers] == [k == "full_attention" for k in kinds]
    assert cache.is_sliding == [k != "full_attention" for k in kinds]


def test_a_model_without_full_attention_is_refused() -> None:
    from transformers import MistralConfig

    with pytest.raises(UnsupportedError, match="no full-attention layer"):
        coded_cache(MistralConfig(num_hidden_layers=2, sliding_window=32), KVBits(4, 4))


@pytest.mark.parametrize(
    ("given", "expected"), [(4, (4, 4)), ("4", (4, 4)), ("4,3", (4, 3)), ((8, 2), (8, 2)), (" 3, 2 ", (3, 2))]
)
def test_widths_are_read(given: object, expected: tuple[int, int]) -> None:
    bits = KVBits.parse(given)  # type: ignore[arg-type]
    assert (bits.keys, bits.values) == expected


@pytest.mark.parametrize("given", [1, 9, "", "4,", "4,3,2", "four", (), (4, 4, 4), "4;3", 0, True, 4.5, (4, None)])
def test_what_is_no_width_is_refused(given: object) -> None:
    with pytest.raises(UsageError, match="not a valid width of keys and values"):
        KVBits.parse(given)  # type: ignore[arg-type]


def test_widths_are_written_as_they_are_read() -> None:
    assert [str(KVBits.parse(x)) for x in ("4", "4,4", "4,3")] == ["4", "4", "4,3"]
