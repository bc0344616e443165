"""Gemma 4 on vLLM 0.26 to 0.30 with transformers 5.15 or newer, which describe its layers in different ways.

transformers 5.15 made the configuration heterogeneous: `head_dim` of the whole model is an error, as full and sliding
attention differ. vLLM reads it up to version 0.30, together with `global_head_dim` and `num_global_key_value_heads`,
which transformers drops. vLLM 0.31 reads the new form.
"""

from __future__ import annotations

import functools
from typing import Any

_MARK = "_hlwq"
_GLOBAL = {"global_head_dim": "head_dim", "num_global_key_value_heads": "num_key_value_heads"}


def allow_global_attributes() -> None:
    """Give Gemma 4's text configuration the attributes of the old form as well, in this process."""
    from transformers.models.gemma4 import configuration_gemma4

    text_config: Any = configuration_gemma4.Gemma4TextConfig
    original = text_config.__post_init__
    if not hasattr(text_config, "is_heterogeneous") or hasattr(original, _MARK):
        return

    @functools.wraps(original)
    def post_init(self: Any, **kwargs: Any) -> None:
        original(self, **kwargs)
        if not self.is_heterogeneous or "full_attention" not in (self.layer_types or ()):
            return
        layer = self.per_layer_config[self.layer_types.index("full_attention")]
        found = {old: getattr(layer, new) for old, new in _GLOBAL.items()}
        self.allow_global_per_layer_attribute_access = True
        for name, value in found.items():
            setattr(self, name, value)

    setattr(post_init, _MARK, True)
    text_config.__post_init__ = post_init
