"""Calibration on a GPU: moments near those of the CPU, experts of every layout included, and the same bytes twice."""

from pathlib import Path

import pytest
import torch

from hlwq_cli.checkpoint import load_recipe, make_plan, open_source, quantize
from hlwq_cli.codec import Moments
from hlwq_cli.runtime.calibration import StreamCalibration, token_inputs
from tests.gpu.device import needs_cuda
from tests.runtime.calibration.test_moments import TOKENS, save

pytestmark = needs_cuda


def moments(folder: Path, device: str) -> dict[str, Moments]:
    plan = make_plan(open_source(str(folder)), load_recipe(bits=4))
    calibration = StreamCalibration(token_inputs([TOKENS], device), device)
    calibration.prepare(plan)
    layers = calibration.layers([t.name for t in plan.coded])
    return {name: found.moments for layer in layers for name, found in layer.tensors.items()}


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gemma4", "gpt_oss", "t5", "gpt2", "zamba"])
def test_moments_are_near_those_of_the_cpu(name: str, tmp_path: Path) -> None:
    folder = save(name, tmp_path / name)
    expected, found = (moments(folder, device) for device in ("cpu", "cuda"))
    assert set(found) == set(expected)
    for tensor, ours in found.items():
        theirs = expected[tensor]
        assert ours.h.is_cuda
        assert ours.h.dtype == torch.float32
        count, total = (torch.as_tensor(m.count).double().cpu() for m in (ours, theirs))
        assert float(count.sum()) == float(total.sum())
        assert float((count - total).abs().sum()) <= 0.05 * float(total.sum())  # bf16 may route a few tokens elsewhere
        difference = (ours.h.cpu() - theirs.h).double().norm() / theirs.h.double().norm()
        assert difference < 0.1, tensor


@pytest.mark.parametrize("name", ["qwen3_moe", "gemma4", "gpt_oss"])
def test_the_same_tokens_give_the_same_bytes(name: str, tmp_path: Path) -> None:
    folder, digests = save(name, tmp_path / name), set()
    for attempt in range(3):
        calibration = StreamCalibration(token_inputs([TOKENS], "cuda"), "cuda")
        out = tmp_path / f"out{attempt}"
        result = quantize(str(folder), out, load_recipe(bits=4), device="cuda", calibration=calibration)
        digests.add(result.manifest.digest)
        assert any(t.loss is not None for t in result.manifest.coded)
    assert len(digests) == 1
