"""The static cache: its lengths, and the models it is not for."""

import pytest
import torch
import transformers as t

from hlwq_cli.runtime.kv import StaticCache, StaticDecodeUnsupported, bucket
from tests.support.builders import TEXT


def test_models_of_other_kinds_are_refused() -> None:
    linear = t.Qwen3NextConfig(**TEXT | {"layer_types": ["linear_attention", "full_attention"]}, num_experts=4)
    with pytest.raises(StaticDecodeUnsupported, match="unknown kind"):
        StaticCache(linear, 1, 256, torch.float32, torch.device("cpu"))


def test_lengths_grow_by_a_half_at_most_and_are_few() -> None:
    lengths = sorted({bucket(n) for n in range(1, 2**17 + 1)})
    assert lengths[:9] == [256, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144]
    assert len(lengths) == 18
    assert all(bucket(n) == n for n in lengths)
    assert all(bucket(n + 1) <= max(1.5 * n, n + 256) for n in lengths)
