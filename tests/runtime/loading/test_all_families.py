"""A spread of the model types that transformers ships: coded, each answers exactly as its decoded weights do.

The full list is docs/families.md, made by scripts/checks/families.py; these are two or three of each kind of layout.
"""

from pathlib import Path

import pytest
import torch

from scripts.checks.family.steps import check_family
from scripts.checks.family.tiny_models import AUTO_CLASSES, Family

MIXTURES = {
    "qwen3_moe": 0.78,
    "mixtral": 0.85,
    "granitemoe": 0.8,
    "minimax_m2": 0.8,
    "deepseek_v3": 0.8,
    "qwen3_next": 0.8,
    "jamba": 0.8,
    "gpt_oss": 0.6,
    "aria_text": 0.6,
    "jetmoe": 0.6,
    "llama4_text": 0.6,
    "granitemoehybrid": 0.8,
}
"""Experts stored one matrix each, stacked, transposed, with biases, shared. The least share that must be coded."""
DENSE = {
    "llama": 0.75,
    "gemma3_text": 0.6,
    "phi3": 0.7,
    "hrm_text": 0.8,
    "gpt2": 0.6,
    "mamba2": 0.4,
    "zamba": 0.7,
    "zamba2": 0.7,
}
"""Weights that are whole, merged or split in the file, transposed, and shared by layers."""
OTHERS = {
    "image-text": {"gemma4": 0.35, "qwen2_5_vl": 0.4, "qwen3_vl_moe": 0.5},
    "seq2seq": {"t5": 0.9, "marian": 0.6},
    "masked": {"bert": 0.7, "nomic_bert": 0.7, "roberta": 0.6},
    "base": {"vit": 0.7, "clip": 0.7, "whisper": 0.3},
}
SHARES = [("causal", *entry) for entry in (MIXTURES | DENSE).items()]
SHARES += [(kind, *entry) for kind, shares in OTHERS.items() for entry in shares.items()]


@pytest.mark.filterwarnings("ignore")  # of transformers, about the tiny models
@pytest.mark.parametrize(("kind", "model_type", "share"), SHARES, ids=[entry[1] for entry in SHARES])
def test_codes_answer_exactly_as_the_decoded_weights(
    kind: str, model_type: str, share: float, memory_folder: Path
) -> None:
    family = Family(model_type, AUTO_CLASSES[kind][model_type], kind)
    row = check_family(family, memory_folder, dtypes=(torch.float32,))
    assert (row.verdict, row.difference, row.dtype) == ("equal", 0.0, "f32")
    assert row.coded_share is not None
    assert row.coded_share >= share
