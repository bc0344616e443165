"""A source that is already quantized, by any tool, is refused with a message that says so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.run_command import assert_refused, hlwq
from tests.support.builders import LLAMA, dense, save_tensors

HINT = "Give the unquantized checkpoint it was made from."


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "bitsandbytes", "compressed-tensors", "mxfp4", "finegrained"])
@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_config_with_a_quantization_method_is_refused(tmp_path: Path, method: str, key: str) -> None:
    source = save_tensors(tmp_path / "m", dense(), LLAMA | {key: {"quant_method": method, "bits": 4}})
    assert_refused(hlwq("quantize", source, tmp_path / "out"), 1, f"is quantized already ({method}).", HINT)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_fp8_weights_without_a_config_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = dense() | {"model.layers.0.self_attn.k_proj.weight": torch.zeros(8, 128).to(dtype)}
    source = save_tensors(tmp_path / "m", tensors, LLAMA)
    ran = hlwq("quantize", source, tmp_path / "out")
    assert_refused(ran, 1, "model.layers.0.self_attn.k_proj.weight is F8_E", HINT)


@pytest.mark.parametrize("name", ["qweight", "qzeros", "weight_packed", "codes"])
def test_packed_weights_without_a_config_are_refused(tmp_path: Path, name: str) -> None:
    packed: dict[str, Any] = {f"model.layers.0.self_attn.k_proj.{name}": torch.zeros(8, 16, dtype=torch.int32)}
    source = save_tensors(tmp_path / "m", dense() | packed, LLAMA)
    ran = hlwq("quantize", source, tmp_path / "out")
    assert_refused(ran, 1, f"k_proj.{name} is I32", HINT)


def test_result_of_hlwq_is_refused_as_a_source(coded: Callable[[str], Path], tmp_path: Path) -> None:
    ran = hlwq("quantize", coded("qwen3"), tmp_path / "out")
    assert_refused(ran, 1, "is quantized already (hlwq).", HINT)
