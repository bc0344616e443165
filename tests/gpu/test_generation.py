"""Decoding on a CUDA device: captured steps are the eager ones, and the text is that of the CPU."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hlwq_cli.checkpoint import load_recipe, quantize
from hlwq_cli.runtime import HLWQModel
from hlwq_cli.runtime.decode import Generation
from hlwq_cli.runtime.kv import KVBits
from hlwq_cli.runtime.loading import load_model
from hlwq_cli.runtime.modules import HLWQExperts
from hlwq_cli.samples import resolve_model
from tests.gpu.device import CUDA, needs_cuda
from tests.runtime.loads import tokens
from tests.support.builders import FAMILIES

pytestmark = needs_cuda

PROMPTS = ["My fellow citizens,", "The state of our union is", "We"]
TEXT = {"max_new_tokens": 64, "chat": False}


@pytest.fixture(scope="module", autouse=True)
def exact() -> Iterator[None]:
    """float32 products in float32: what is compared with the CPU must not be rounded to TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    coded = tmp_path_factory.mktemp("gpu") / "sample-coded"
    quantize(resolve_model("sample"), coded, load_recipe())
    return {"plain": resolve_model("sample"), "coded": str(coded)}


def opened(folder: str, device: str, **options: Any) -> HLWQModel:
    return HLWQModel.from_pretrained(folder, device=device, dtype="float32", **options)


def ids_of(model: Any, captured: bool, **options: Any) -> torch.Tensor:
    """Tokens by replayed graphs, or by the same steps one by one."""
    generation = Generation(model)
    assert generation.decoder is not None
    if not captured:
        generation.decoder.graph_error = "asked for"
    torch.manual_seed(7)
    return generation.generate(**options)


def asked(**settings: Any) -> dict[str, Any]:
    ids = tokens(2, 30).to(CUDA)
    mask = torch.ones_like(ids)
    mask[0, :11] = 0
    common = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 64, "pad_token_id": 0, "eos_token_id": None}
    return {"do_sample": False, **common, **settings}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["plain", "coded"])
@pytest.mark.parametrize("length", [30, 230, 505])
def test_captured_steps_give_the_tokens_of_eager_ones(
    folders: dict[str, str], kind: str, length: int, dtype: str
) -> None:
    """From 230 and 505 tokens on, the answer goes over the edge of a captured length."""
    model = load_model(folders[kind], device="cuda:0", dtype=dtype)
    ids = tokens(1, length).to(CUDA)
    options = asked() | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(ids_of(model, True, **options), ids_of(model, False, **options))


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "temperature": 1.5, "top_p": 0.9}])
def test_a_captured_batch_of_unequal_prompts_is_that_of_transformers(
    folders: dict[str, str], settings: dict[str, Any]
) -> None:
    model = load_model(folders["plain"], device="cuda:0", dtype="float32")
    torch.manual_seed(7)
    expected = model.generate(**asked(**settings))
    assert torch.equal(ids_of(model, True, **asked(**settings)), expected)


def test_a_plain_mixture_of_experts_is_captured(folders: dict[str, str]) -> None:
    for dtype in ("float32", "bfloat16"):
        model = load_model(folders["plain"], device="cuda:0", dtype=dtype)
        generation = Generation(model)
        generation.generate(**asked(max_new_tokens=4))
        assert generation.decoding == "graph", generation.decoder and generation.decoder.graph_error


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_family_is_captured_and_goes_on_as_by_transformers(family: Callable[[str], Path], name: str) -> None:
    model = load_model(str(family(name)), device="cuda:0", dtype="float32")
    options = asked(do_sample=True, temperature=2.0)
    torch.manual_seed(7)
    expected = model.generate(**options)
    generation = Generation(model)
    torch.manual_seed(7)
    assert torch.equal(generation.generate(**options), expected)
    assert generation.decoding == "graph", generation.decoder and generation.decoder.graph_error


@pytest.mark.parametrize("bits", [KVBits(4, 3), KVBits(8, 8)], ids=str)
@pytest.mark.parametrize("length", [30, 90, 230])
def test_captured_steps_over_codes_give_the_tokens_of_eager_ones(
    folders: dict[str, str], bits: KVBits, length: int
) -> None:
    model = load_model(folders["plain"], device="cuda:0", dtype="float32", kv_bits=bits)
    ids = tokens(2, length).to(CUDA)
    mask = torch.ones_like(ids)
    mask[0, :11] = 0
    options = asked(max_new_tokens=80) | {"input_ids": ids, "attention_mask": mask}
    generation = Generation(model)
    found = generation.generate(**options)
    assert generation.decoding == "graph", generation.decoder and generation.decoder.graph_error
    assert torch.equal(found, ids_of(model, False, **options))
    assert torch.equal(generation.generate(**options), found)
    assert (found == model.generate(**options)).float().mean() > 0.9  # transformers' loop; sums in another order


@pytest.mark.parametrize("kind", ["plain", "coded"])
def test_text_on_the_gpu_is_that_of_the_cpu(folders: dict[str, str], kind: str) -> None:
    cpu, gpu = opened(folders[kind], "cpu"), opened(folders[kind], "cuda:0")
    expected = cpu.generate(PROMPTS, **TEXT)
    assert gpu.generate(PROMPTS, **TEXT) == expected
    assert gpu.generation.decoding in ("graph", "eager")
    assert ["".join(gpu.stream(p, **TEXT)) for p in PROMPTS] == [cpu.generate(p, **TEXT) for p in PROMPTS]


def test_loaded_on_the_cpu_and_moved_a_model_answers_as_one_loaded_on_the_gpu(folders: dict[str, str]) -> None:
    model, loaded = opened(folders["coded"], "cpu"), opened(folders["coded"], "cuda:0")
    stored = {n: t.clone() for n, t in model.model.state_dict().items() if ".codes" in n}
    expected = loaded.generate(PROMPTS, **TEXT)
    assert model.generate(PROMPTS, **TEXT) == expected
    model.model.to(CUDA)
    assert {t.device for t in (*model.model.parameters(), *model.model.buffers())} == {CUDA}
    assert model.generate(PROMPTS, **TEXT) == expected
    assert model.generation.decoding in ("graph", "eager")
    after = model.model.state_dict()
    assert all(torch.equal(after[name].cpu(), codes) for name, codes in stored.items())
    model.model.load_state_dict(loaded.model.state_dict())
    assert model.generate(PROMPTS, **TEXT) == expected
    for moved in (model, loaded):
        moved.model.to("cpu")
        assert moved.generate(PROMPTS, **TEXT) == expected
        assert moved.generation.decoding == "transformers"


def test_stop_strings_and_seeds_hold_on_the_gpu(folders: dict[str, str]) -> None:
    model = opened(folders["plain"], "cuda:0")
    whole = model.generate(PROMPTS[1], **TEXT)
    word = str(whole).split()[5]
    assert model.generate(PROMPTS[1], **TEXT, stop=[word]) == str(whole)[: str(whole).index(word)]
    drawn = [model.generate("We", **TEXT, temperature=1.2, seed=s) for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_answers_one_after_the_other_and_of_other_sizes_do_not_disturb_each_other(folders: dict[str, str]) -> None:
    model = opened(folders["plain"], "cuda:0")
    alone = [opened(folders["plain"], "cuda:0").generate(p, **TEXT) for p in PROMPTS]
    for _ in range(2):
        assert [model.generate(p, **TEXT) for p in PROMPTS] == alone
        assert model.generate(PROMPTS, **TEXT) == alone


@pytest.mark.parametrize("wait", [lambda x: x.sum().item(), lambda x: torch.cuda.synchronize()])
def test_a_model_that_waits_for_the_device_is_decoded_all_the_same(
    folders: dict[str, str], wait: Callable[[torch.Tensor], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A wait that capturing alone finds must leave the device, and its random numbers, fit for the eager steps."""
    model = load_model(folders["plain"], device="cuda:0", dtype="float32")
    options = asked(do_sample=True, temperature=1.5)
    expected = ids_of(model, False, **options)
    model.lm_head.register_forward_pre_hook(lambda module, args: wait(args[0]) and None)
    generation = Generation(model)
    with caplog.at_level(logging.WARNING, "hlwq"):
        torch.manual_seed(7)
        assert torch.equal(generation.generate(**options), expected)
        torch.manual_seed(7)
        assert torch.equal(generation.generate(**options), expected)
    assert generation.decoding == "eager"
    assert sum("without a CUDA graph" in r.message for r in caplog.records) == 1


def test_loading_holds_the_codes_and_nothing_dense(folders: dict[str, str]) -> None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(CUDA)
    before = torch.cuda.memory_allocated(CUDA)
    model = load_model(folders["coded"], device="cuda:0")
    held = torch.cuda.memory_allocated(CUDA) - before
    stored = sum(p.stat().st_size for p in Path(folders["coded"]).glob("*.safetensors"))
    assert held < 1.1 * stored + 2**20
    assert torch.cuda.max_memory_allocated(CUDA) - before < 1.3 * stored + 2**21
    assert all(not m.dense for m in model.modules() if isinstance(m, HLWQExperts))
