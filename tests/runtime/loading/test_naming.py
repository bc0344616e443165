"""Names are matched in steps linear in their number."""

import torch
from torch import nn
from transformers import conversion_mapping

from hlwq_cli.codec import lloyd_max
from hlwq_cli.runtime.loading import module_names, replace_modules
from hlwq_cli.runtime.modules import HLWQLinear, QuantFormat
from tests.support.effort import lines_run

LAYERS = (200, 800)


class Wide(nn.Module):
    """Linear layers by the thousand, under names of transformers' depth."""

    base_model_prefix = "model"
    config = None

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.walks = 0
        stack = nn.ModuleList(nn.ModuleDict({"q_proj": nn.Linear(64, 2)}) for _ in range(layers))
        self.model = nn.ModuleDict({"layers": stack})

    def named_modules(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        self.walks += 1
        return super().named_modules(*args, **kwargs)


def lines_to_name_and_replace(layers: int) -> int:
    with torch.device("meta"):
        model = Wide(layers)
    stored: dict[str, tuple[int, ...]] = {f"layers.{i}.q_proj.codes": (2, 40) for i in range(layers)}

    def work() -> dict[str, tuple[int, ...]]:
        named = module_names(model, stored)
        replace_modules(model, named, QuantFormat(64, "log8", {5: tuple(lloyd_max(5))}))
        return named

    named, lines = lines_run(work)
    assert list(named) == [f"model.{name}" for name in stored]
    assert sum(isinstance(m, HLWQLinear) for m in model.modules()) == layers
    assert model.walks < 5
    return lines


def test_the_steps_to_name_and_replace_tensors_grow_with_their_number(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(conversion_mapping, "get_model_conversion_mapping", lambda *a, **k: [])
    lines_to_name_and_replace(1)
    few, many = (lines_to_name_and_replace(layers) for layers in LAYERS)
    assert many < 5 * few  # 4 here; 16 if each tensor looked at all others
