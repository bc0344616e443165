"""Experts outside the device: the resident model's answers to the bit, no byte fetched that rules do not ask for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from hlwq_cli.errors import CorruptError, UnsupportedError, UsageError
from hlwq_cli.runtime import HLWQModel
from hlwq_cli.runtime.loading import load_model
from hlwq_cli.runtime.modules import HLWQExperts
from hlwq_cli.runtime.offload import ExpertBudget, Traffic, expert_cache_of, placement
from hlwq_cli.samples import resolve_model
from tests.kernels.offload.slot_rules import SlotRules
from tests.support.files import read_tensors

from ..loads import logits, tokens

Family = Callable[[str], Path]
MIXTURES = ("gemma4", "qwen3_moe", "mixtral")


def opened(folder: Path | str, slots: int | None, dtype: str = "float32") -> Any:
    """A coded model on the CPU, its experts resident where no slots are asked for."""
    budget = None if slots is None else ExpertBudget(slots)
    return load_model(str(folder), device="cpu", dtype=dtype, execution="coded", expert_budget=budget)


def layers_of(model: Any) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, HLWQExperts)]


@pytest.fixture(scope="module")
def resident(coded_sample: str) -> Any:
    return opened(coded_sample, None)


PASSES = [tokens(2, 9), tokens(1, 1), tokens(3, 1), tokens(1, 24), tokens(1, 1, seed=5)]


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize(("dtype", "some"), [("float32", (1, 3, 99)), ("bfloat16", (2,))])
def test_logits_are_those_of_the_resident_model_to_the_bit(
    coded: Family, name: str, dtype: str, some: tuple[int, ...]
) -> None:
    """One slot, some, and as many as there are experts; batches, prompts with more experts than slots, and repeats."""
    expected = [logits(opened(coded(name), None, dtype), input_ids=ids) for ids in PASSES]
    for slots in some:
        model = opened(coded(name), slots, dtype)
        for ids, logits_of in zip(PASSES, expected, strict=True):
            assert torch.equal(logits(model, input_ids=ids), logits_of), (slots, ids.shape)


@pytest.mark.parametrize("slots", [1, 5])
def test_the_sample_answers_as_ever_through_slots(coded_sample: str, resident: Any, slots: int) -> None:
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    ids = tokens(2, 12)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    expected = resident.generate(ids, attention_mask=mask, **options)
    model = opened(coded_sample, slots)
    for _ in range(2):
        assert torch.equal(model.generate(ids, attention_mask=mask, **options), expected)


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_every_expert_in_one_step_and_numbers_that_are_no_experts(coded_sample: str, resident: Any, slots: int) -> None:
    model = opened(coded_sample, slots)
    torch.manual_seed(1)
    x, routed = torch.randn(4, 192), torch.rand(4, 2)
    all_at_once = torch.tensor([[0, 1], [2, 3], [4, 5], [6, 7]])
    for chosen in (all_at_once, torch.tensor([[8, 1], [-1, 3], [8, -1], [1, 1]]), torch.full((4, 2), 8), all_at_once):
        for ours, other in zip(layers_of(model), layers_of(resident), strict=True):
            with torch.no_grad():
                assert torch.equal(ours(x, chosen, routed), other(x, chosen, routed))


def test_no_tokens_and_gradients_are_as_those_of_the_resident_model(coded_sample: str, resident: Any) -> None:
    ours, other = layers_of(opened(coded_sample, 2))[0], layers_of(resident)[0]
    assert ours(torch.zeros(0, 192), torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, 2)).shape == (0, 192)
    torch.manual_seed(1)
    chosen = torch.randint(0, 8, (6, 2))
    found = []
    for layer in (ours, other):
        torch.manual_seed(2)
        x, routed = torch.randn(6, 192, requires_grad=True), torch.rand(6, 2, requires_grad=True)
        layer(x, chosen, routed).square().sum().backward()
        found.append((x.grad, routed.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def recorded(model: Any) -> Iterator[list[torch.Tensor]]:
    """What routers choose, layer by layer, from now on."""
    for layer in layers_of(model):
        choices: list[torch.Tensor] = []
        layer.register_forward_pre_hook(lambda module, args, choices=choices: choices.append(args[1].clone()))
        yield choices


@pytest.mark.parametrize("slots", [1, 2, 5, 8])
def test_bytes_fetched_are_those_that_routers_and_rules_ask_for(coded_sample: str, slots: int) -> None:
    model = opened(coded_sample, slots)
    cache = expert_cache_of(model)
    assert cache is not None
    choices = list(recorded(model))
    ids = tokens(2, 12)
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, pad_token_id=0)
    model.generate(
        ids[:1, :1], attention_mask=torch.ones(1, 1).long(), max_new_tokens=8, do_sample=False, pad_token_id=0
    )
    expected = Traffic()
    for layer in choices:
        rules = SlotRules(8, slots)
        wanted = streamed = 0
        for chosen in layer:
            experts = set(chosen.flatten().tolist())
            if slots + 2 < 8 and chosen.numel() > slots + 2:
                streamed += len(experts)
            else:
                wanted += len(experts)
                rules.step(experts)
        record = cache.record_bytes
        expected -= Traffic(-wanted, -rules.fetched, -rules.fetched * record, -streamed * record)
    assert cache.traffic() == expected
    assert expected.fetched > 0
    assert (expected.streamed > 0) == (slots < 6)


def test_records_are_the_bytes_of_the_files_and_no_expert_is_held_twice(coded: Family) -> None:
    model = opened(coded("gemma4"), 2, "bfloat16")
    stored = read_tensors(coded("gemma4"))
    held = {n for n, _ in model.named_buffers()} | {n for n, _ in model.named_parameters()}
    assert not any("experts" in n for n in held)
    for path, layer in ((n, m) for n, m in model.named_modules() if isinstance(m, HLWQExperts)):
        assert layer.layout is not None
        assert layer.offloaded is not None
        for e in range(layer.expert_count):
            record = layer.offloaded.records.read(e).numpy().tobytes()
            for part, name in zip((*layer.layout.gate_up, *layer.layout.down), stored_names(path), strict=True):
                size = len(stored[name].data) // layer.expert_count
                assert record[part.offset : part.offset + size] == stored[name].data[e * size : (e + 1) * size]


def stored_names(path: str) -> list[str]:
    return [f"{path}.{kind}_{p}" for p in ("gate_up_proj", "down_proj") for kind in ("codes", "scales", "base")]


def test_where_host_memory_is_short_the_files_serve(
    coded: Family, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = [logits(opened(coded("gemma4"), None), input_ids=ids) for ids in PASSES]
    monkeypatch.setattr(placement, "host_memory_free", lambda: placement.HOST_SPARE)
    model = opened(coded("gemma4"), 2)
    cache = expert_cache_of(model)
    assert cache is not None
    assert cache.tier == "files"
    assert "are in the checkpoint's files, because host memory is too small" in caplog.text
    for ids, logits_of in zip(PASSES, expected, strict=True):
        assert torch.equal(logits(model, input_ids=ids), logits_of)


def test_a_file_that_is_cut_while_it_serves_is_an_error(
    coded: Family, copied: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "host_memory_free", lambda: 0)
    folder = copied(coded("mixtral"))
    model = opened(folder, 1)
    for file in folder.glob("*.safetensors"):
        with file.open("r+b") as f:
            f.truncate(1000)
    with pytest.raises(CorruptError, match="cut short"):
        layers_of(model)[0].offloaded.records.read(2)


def test_a_cancelled_answer_does_not_disturb_the_next(coded_sample: str) -> None:
    expected = HLWQModel.from_pretrained(coded_sample, device="cpu", dtype="float32", execution="coded")
    model = HLWQModel.from_pretrained(
        coded_sample, device="cpu", dtype="float32", execution="coded", expert_cache_slots=2
    )
    answer = model.stream("My fellow citizens,", max_new_tokens=200, chat=False)
    next(answer)
    answer.cancel()
    for _ in answer:
        pass
    assert answer.tokens < 200
    settings: dict[str, Any] = {"max_new_tokens": 8, "chat": False}
    assert model.generate("The state of our union", **settings) == expected.generate(
        "The state of our union", **settings
    )


def test_two_threads_get_their_own_answers(coded_sample: str, resident: Any) -> None:
    model = opened(coded_sample, 2)
    inputs = [tokens(1, n, seed=n) for n in (1, 2, 7, 3)]
    # in a thread, too: torch splits its sums otherwise in the main one
    with ThreadPoolExecutor(1) as pool:
        expected = list(pool.map(lambda ids: logits(resident, input_ids=ids), inputs))
    wrong: list[int] = []

    def ask() -> None:
        for _ in range(3):
            wrong.extend(
                i for i, ids in enumerate(inputs) if not torch.equal(logits(model, input_ids=ids), expected[i])
            )

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_cannot_be_meant_is_refused(coded: Family, coded_sample: str) -> None:
    for slots, memory in ((0, None), (-1, None), (1, "8GB"), (None, "much")):
        with pytest.raises(UsageError):
            HLWQModel.from_pretrained(coded_sample, device="cpu", expert_cache_slots=slots, gpu_memory=memory)
    with pytest.raises(UsageError, match="--gpu-memory needs a GPU"):
        HLWQModel.from_pretrained(coded_sample, device="cpu", gpu_memory="8.6GB")
    with pytest.raises(UsageError, match="can only run as codes"):
        HLWQModel.from_pretrained(coded_sample, device="cpu", execution="dense", expert_cache_slots=1)
    for folder in (coded("llama"), resolve_model("sample")):
        with pytest.raises(UnsupportedError, match="no coded experts"):
            opened(folder, 1)


def test_it_is_not_saved_without_its_experts(coded: Family, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not serializable"):
        opened(coded("qwen3_moe"), 1).save_pretrained(tmp_path)


@pytest.mark.parametrize("change", ["missing", "mismatched shapes"])
def test_experts_that_are_not_whole_are_named(coded: Family, copied: Callable[[Path], Path], change: str) -> None:
    from safetensors.torch import load_file, save_file

    folder = copied(coded("qwen3_moe"))
    name = "model.layers.0.mlp.experts.scales_down_proj"
    file = next(f for f in folder.glob("*.safetensors") if name in load_file(f))
    tensors = load_file(file)
    tensors[name] = tensors[name][:, :-1].contiguous()
    if change == "missing":
        del tensors[name]
    save_file(tensors, file, {"format": "pt", "format_version": "1"})
    with pytest.raises(CorruptError, match=f"{change}: .*{name}"):
        opened(folder, 1)
