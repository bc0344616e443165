"""Settings of a checkpoint's generation_config.json that one call of `generate` cannot follow."""

from __future__ import annotations

from typing import Any

_RETURNED = ("return_dict_in_generate", "output_scores", "output_logits", "output_attentions", "output_hidden_states")
"""What they ask for is more than token ids. The answer is the same without it."""
_FROM_HUB = ("penalty_alpha", "dola_layers", "constraints", "force_words_ids")
"""Decoding that transformers would do with code from the Hub, which is never run."""
_NO_CACHE = (None, "dynamic")
_ASSISTED = {"prompt_lookup_num_tokens": None, "assistant_early_exit": None, "use_mtp": False}
"""Decoding of several tokens at once, and the value that turns each off."""


def config_overrides(config: Any, *, streams: bool, has_tokenizer: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Return options of `generate` that replace settings of a generation config, and why, by setting.

    Args:
        config: the generation config.
        streams: whether the answer is streamed.
        has_tokenizer: whether `generate` gets a tokenizer.

    Returns:
        The options, and for each setting whose loss may change the answer or its speed a reason to warn of.
    """
    options: dict[str, Any] = {name: False for name in _RETURNED if getattr(config, name, None)}
    reasons: dict[str, str] = {}

    def drop(name: str, value: Any, reason: str) -> None:
        options[name], reasons[name] = value, reason

    for name in _FROM_HUB:
        if getattr(config, name, None) is not None:
            drop(name, None, "it needs code from the Hub, which hlwq never runs")
    if (getattr(config, "num_beam_groups", None) or 1) > 1:
        drop("num_beam_groups", None, "it needs code from the Hub, which hlwq never runs")
        options["diversity_penalty"] = None
    if (config.num_return_sequences or 1) > 1:
        drop("num_return_sequences", 1, "each prompt gets one answer")
    if (config.num_beams or 1) > 1 and streams:
        drop("num_beams", 1, "a stream cannot wait for beams")
    if config.token_healing:
        drop("token_healing", False, "prompts stay as they are given")
    if getattr(config, "is_assistant", None):
        drop("is_assistant", False, "the model answers by itself")
    if config.exponential_decay_length_penalty is not None and config.eos_token_id is None:
        drop("exponential_decay_length_penalty", None, "there is no end token")
    if config.stop_strings and not has_tokenizer:
        drop("stop_strings", None, "there is no tokenizer to look for them")
    if config.cache_implementation not in _NO_CACHE:
        drop("cache_implementation", None, "hlwq chooses the cache")
    for name, value in _ASSISTED.items():
        if getattr(config, name, None) not in (None, False):
            drop(name, value, "hlwq decodes one token at a time, with the same answers")
    return options, reasons
