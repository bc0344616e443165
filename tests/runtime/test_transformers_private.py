"""Every name that is private to transformers is where `transformers_private` expects it, with the signature it uses.

A failure here names what an upgrade of transformers has moved.
"""

import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as t
from torch import nn
from transformers import conversion_mapping, core_model_loading
from transformers.cache_utils import Cache, DynamicCache
from transformers.integrations import moe
from transformers.modeling_utils import PreTrainedModel
from transformers.quantizers import auto

from hlwq_cli.runtime import transformers_private as private

TEXT = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}


def llama() -> Any:
    return t.LlamaForCausalLM(t.LlamaConfig(**TEXT, **HEADS))


def takes(function: Callable[..., Any], *positional: Any, **named: Any) -> None:
    """Fail unless a function can be called with these arguments."""
    inspect.signature(function).bind(*positional, **named)


@pytest.mark.parametrize("name", sorted(private.INTERNAL))
def test_each_name_is_in_its_internal_module(name: str) -> None:
    module = importlib.import_module(private.INTERNAL[name])
    assert hasattr(module, name), f"{private.INTERNAL[name]} has no {name}"
    assert getattr(private, name) is getattr(module, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        getattr(private, "Nothing")  # noqa: B009 - mypy knows that it is not there


@pytest.mark.parametrize(
    "name", ["lazy_initialization", "update", "get_mask_sizes", "get_seq_length", "get_max_length", "reset"]
)
def test_cache_layers_have_the_methods_that_ours_implement(name: str) -> None:
    assert callable(getattr(private.CacheLayerMixin, name))


def test_the_quantizer_calls_the_methods_that_ours_overrides() -> None:
    for name in ("_process_model_before_weight_loading", "_process_model_after_weight_loading", "validate_environment"):
        assert callable(getattr(private.HfQuantizer, name)), name
    for name in ("is_serializable", "is_trainable"):
        assert hasattr(private.HfQuantizer, name), name


def test_quantizers_are_registered_in_a_mapping() -> None:
    assert auto.__package__ == private.QUANTIZERS
    assert "hlwq" in auto.AUTO_QUANTIZATION_CONFIG_MAPPING
    takes(auto.register_quantization_config, "name")
    takes(auto.register_quantizer, "name")


def test_stored_names_are_renamed_by_the_conversion_mapping() -> None:
    takes(conversion_mapping.get_model_conversion_mapping, llama())
    takes(core_model_loading.rename_source_key, "name", [], [])
    assert isinstance(core_model_loading.WeightRenaming, type)
    assert private.rename_stored(llama(), ["model.norm.weight"]) == {"model.norm.weight": "model.norm.weight"}


def test_names_are_kept_when_loading_and_when_saving() -> None:
    entry = core_model_loading.WeightRenaming(".block.", ".mlp.")
    private.keep_names([entry], {"a.block.codes", "a.mlp.codes"})
    assert entry.rename_source_key("a.block.codes")[0] == "a.block.codes"
    assert entry.rename_source_key("a.block.weight")[0] == "a.mlp.weight"
    reverse = entry.reverse_transform()
    assert reverse.rename_source_key("a.mlp.codes")[0] == "a.mlp.codes"
    assert reverse.rename_source_key("a.mlp.weight")[0] == "a.block.weight"


def test_the_quantizer_sees_the_conversion_mapping() -> None:
    assert callable(private.HfQuantizer.update_weight_conversions)
    model = t.MixtralForCausalLM(t.MixtralConfig(**TEXT, **HEADS, num_local_experts=2))
    found = private.names_when_unexpected(model, ["model.layers.9.mlp.experts.0.w1.weight", "extra.weight"])
    assert found == {"model.layers.9.mlp.experts.gate_up_proj", "extra.weight"}


def test_patterns_of_tied_weights_become_exact_names() -> None:
    model = llama()
    model.config.tie_word_embeddings = True
    model._tied_weights_keys = {r"lm_head\.w": r"model\.embed_tokens\.w"}
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
    assert private.tied_weights(model) == {"lm_head.weight": "model.embed_tokens.weight"}
    private.untie(model, {"lm_head.weight"})
    assert private.tied_weights(model) == {}
    assert model.get_expanded_tied_weights_keys(all_submodels=True) == {}


def test_usual_experts_are_told_from_other_layouts() -> None:
    settings = {**TEXT, **HEADS}
    usual = t.MixtralForCausalLM(t.MixtralConfig(**settings, num_local_experts=2))
    other = t.GptOssForCausalLM(t.GptOssConfig(**settings, num_local_experts=2))
    assert private.has_usual_layout(usual.model.layers[0].mlp.experts)
    assert not private.has_usual_layout(other.model.layers[0].mlp.experts)
    assert not private.has_usual_layout(nn.Linear(2, 2))


def test_the_lists_of_keys_are_watched_once() -> None:
    takes(PreTrainedModel._adjust_missing_and_unexpected_keys, llama(), None)
    model, seen = llama(), []
    info = SimpleNamespace(missing_keys=set(), unexpected_keys=set(), mismatched_keys=set())
    private.watch_loading(model, seen.append)
    model._adjust_missing_and_unexpected_keys(info)
    assert seen == [info]
    assert "_adjust_missing_and_unexpected_keys" not in model.__dict__


def test_models_list_modules_in_float32_and_tied_weights() -> None:
    model = t.LlamaForCausalLM(t.LlamaConfig(**TEXT, **HEADS, tie_word_embeddings=True))
    assert private.float32_modules(model) == set()
    assert private.tied_weights(model) == {"lm_head.weight": "model.embed_tokens.weight"}
    private.untie(model, {"lm_head.weight"})
    assert private.tied_weights(model) == {}
    assert model._tied_weights_keys == {}
    assert t.LlamaForCausalLM._tied_weights_keys, "only this model is changed, not its class"


def test_marked_modules_are_not_initialized() -> None:
    model = llama()
    before = model.lm_head.weight.clone()
    private.skip_initialization(model.lm_head)
    model._initialize_weights(model.lm_head)
    assert torch.equal(model.lm_head.weight, before)


def test_a_module_changes_its_class_in_place() -> None:
    class Other(nn.Linear):
        pass

    module = nn.Linear(2, 2)
    private.change_class(module, Other)
    assert type(module) is Other


def test_resizing_is_overridden_on_one_model() -> None:
    takes(PreTrainedModel.resize_token_embeddings, llama(), 8, pad_to_multiple_of=4, mean_resizing=False)
    model = llama()
    private.override_resize(model, lambda *args: "refused")  # type: ignore[arg-type,return-value]
    assert model.resize_token_embeddings(8) == "refused"
    assert llama().resize_token_embeddings(48).num_embeddings == 48


def test_the_default_gate_of_experts_has_its_name() -> None:
    assert callable(moe._default_apply_gate)
    config = t.Qwen3MoeConfig(**TEXT, **HEADS, num_experts=2, moe_intermediate_size=32)
    experts = t.Qwen3MoeForCausalLM(config).model.layers[0].mlp.experts
    assert private.has_default_gate(experts)
    assert private.is_experts_module(experts)
    assert not private.is_experts_module(nn.Linear(2, 2))


def test_forwards_are_replaced_inside_a_context_only() -> None:
    plain, patched = nn.Identity(), nn.Identity()
    own = patched.forward = lambda x: x + 1
    with private.replaced_forwards({plain: lambda x: x + 10, patched: lambda x: x + 20}):
        assert (plain(0), patched(0)) == (10, 20)
    assert (plain(0), patched(0)) == (0, 1)
    assert "forward" not in plain.__dict__
    assert patched.forward is own


def test_implementations_are_exchanged_inside_a_context_only() -> None:
    config = llama().config
    before = private.attention_of(config), config._experts_implementation
    with private.implementations(config, "eager", "batched_mm"):
        assert (config._attn_implementation, config._experts_implementation) == ("eager", "batched_mm")
    with private.implementations(config, None, None):
        assert (private.attention_of(config), config._experts_implementation) == before
    assert (private.attention_of(config), config._experts_implementation) == before


def test_attention_functions_take_what_ours_pass_on() -> None:
    takes(private.sdpa_attention_forward, None, None, None, None, None, scaling=1.0, dropout=0.0, is_causal=True)


def test_a_supplied_cache_reaches_the_model() -> None:
    model, cache = llama(), DynamicCache()
    private.supply_cache(model, lambda given, config: cache if given is None else given)
    model(torch.tensor([[1, 2, 3]]))
    assert cache.get_seq_length() == 3
    assert private.cache_name(model) in inspect.signature(type(model).forward).parameters


def test_an_empty_cache_takes_other_layers() -> None:
    cache = DynamicCache()
    assert hasattr(cache, "layer_class_to_replicate")
    private.replace_layers(cache, [private.DynamicLayer()])
    assert isinstance(cache, Cache)
    assert len(cache.layers) == 1
    assert not private.is_placeholder(cache.layers[0])


def test_generation_is_prepared_by_the_methods_of_models() -> None:
    model = llama()
    assert not private.has_own_positions(type(model))
    options = {"input_ids": torch.tensor([[1, 2]]), "max_new_tokens": 3, "do_sample": True, "temperature": 0.5}
    config, inputs = private.generation_config(model, options)
    assert config.max_new_tokens == 3
    assert list(inputs) == ["input_ids"]
    assert config.get_generation_mode() is private.GenerationMode.SAMPLE
    found = private.logits_processors(model, config, 2, model.device)
    assert t.TemperatureLogitsWarper in map(type, found)


def test_processors_call_the_hooks_that_ours_overrides() -> None:
    for name in ("prepare_inputs_layout", "replace_image_token", "unused_input_names"):
        assert hasattr(t.ProcessorMixin, name), name


def test_an_action_after_an_import_runs_once_and_leaves_no_finder() -> None:
    code = (
        "import sys\nfrom hlwq_cli.runtime.transformers_private import after_import\nbefore = len(sys.meta_path)\n"
        "calls = []\nfor _ in range(2):\n    after_import('colorsys', lambda: calls.append(1))\n"
        "import colorsys\nassert calls == [1] and len(sys.meta_path) == before\n"
        "after_import('colorsys', lambda: calls.append(2))\nassert calls == [1, 2]\nassert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
