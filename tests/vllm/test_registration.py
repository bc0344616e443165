"""Registration with vLLM: versions, options, and the configuration of Gemma 4."""

import copy

import pytest

from hlwq_cli.errors import UnsupportedError, UsageError
from hlwq_cli.samples import resolve_model
from hlwq_cli.vllm import register, registration
from hlwq_cli.vllm.config import Options


def test_registering_again_changes_nothing() -> None:
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, get_quantization_config
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    register()
    before = DefaultModelLoader.get_all_weights
    register()
    assert DefaultModelLoader.get_all_weights is before
    assert QUANTIZATION_METHODS.count("hlwq") == 1
    assert get_quantization_config("hlwq").get_name() == "hlwq"


def test_an_old_version_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration.importlib.metadata, "version", lambda _: "0.19.1+cu130")
    with pytest.raises(UnsupportedError, match=r"vLLM is version 0\.19\. Install vLLM 0\.26 or newer"):
        register()


@pytest.mark.parametrize(
    "given", [{"execution": "fast"}, {"expert_cache_slots": 0}, {"expert_cache_slots": "2"}, {"slots": 2}, 3]
)
def test_invalid_options_are_named(given: object) -> None:
    with pytest.raises(UsageError):
        Options.read({"hlwq": given})
    assert Options.read({}) == Options()


def test_gemma_4_tells_vllm_what_it_reads() -> None:
    from transformers import AutoConfig

    register()
    text = copy.deepcopy(AutoConfig.from_pretrained(resolve_model("sample"))).text_config
    assert (text.head_dim, text.global_head_dim) == (64, 128)
    assert (text.num_key_value_heads, text.num_global_key_value_heads) == (2, 1)
