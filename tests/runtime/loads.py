"""Loading a family's checkpoint: coded and run either way, or exported and plain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import hlwq_cli  # noqa: F401  registers the plugin
from hlwq_cli.runtime.modules import Execution


def auto_class(folder: Path) -> Any:
    """What a user of transformers would load `folder` with."""
    import transformers as t

    sees = hasattr(t.AutoConfig.from_pretrained(folder), "vision_config")
    return t.AutoModelForImageTextToText if sees else t.AutoModelForCausalLM


def load(folder: Path, how: Execution = "auto", dtype: Any = torch.float32) -> Any:
    """A checkpoint by `from_pretrained`, executed `how`."""
    from hlwq_cli.runtime.loading import execution

    with execution(how):
        return auto_class(folder).from_pretrained(folder, dtype=dtype).eval()


def tokens(rows: int = 2, length: int = 9, seed: int = 0) -> torch.Tensor:
    """Ids (rows, length) that no family gives a meaning."""
    return torch.randint(3, 300, (rows, length), generator=torch.Generator().manual_seed(seed))


def logits(model: Any, **inputs: Any) -> torch.Tensor:
    """Logits of a forward pass."""
    with torch.no_grad():
        found: torch.Tensor = model(**inputs).logits
    return found
