"""Names are matched in time linear in their number."""

import gc
import time

import torch
from torch import nn
from transformers import conversion_mapping

from hlwq_cli.codec import lloyd_max
from hlwq_cli.runtime.loading import module_names, replace_modules
from hlwq_cli.runtime.modules import HLWQLinear, QuantFormat

LAYERS = (1_000, 8_000)


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


def seconds_to_name_and_replace(layers: int) -> float:
    with torch.device("meta"):
        model = Wide(layers)
    stored = {f"layers.{i}.q_proj.codes": (2, 40) for i in range(layers)}
    gc.collect()
    gc.disable()  # its walks over a growing heap are not what is measured
    start = time.process_time()
    named = module_names(model, stored)
    replace_modules(model, named, QuantFormat(64, "log8", {5: tuple(lloyd_max(5))}))
    seconds = time.process_time() - start
    gc.enable()
    assert list(named) == [f"model.{name}" for name in stored]
    assert sum(isinstance(m, HLWQLinear) for m in model.modules()) == layers
    assert model.walks < 5
    return seconds


def test_the_time_to_name_and_replace_tensors_grows_with_their_number(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(conversion_mapping, "get_model_conversion_mapping", lambda *a, **k: [])
    seconds_to_name_and_replace(1)
    few, many = (min(seconds_to_name_and_replace(layers) for _ in range(3)) for layers in LAYERS)
    assert many < 6  # 1 to 2 s here
    assert many < 24 * few  # 8 here; 64 if each tensor looked at all others
