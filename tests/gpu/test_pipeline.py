"""quantize on CUDA devices: the files of the CPU, whichever workers code what, in little memory."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hlwq_cli.checkpoint import load_recipe, quantize
from hlwq_cli.checkpoint.run import Trace, open_shard, pipeline
from hlwq_cli.codec import rows as codec_rows
from hlwq_cli.errors import NonFiniteError
from hlwq_cli.host_memory import HostMemory
from hlwq_kernels.encode import dispatch as encode
from tests.cli.run_command import hlwq_process
from tests.gpu.device import CUDA, made_rows, needs_cuda
from tests.support.builders import LLAMA, dense, save_tensors
from tests.support.files import tree

pytestmark = needs_cuda

Family = Callable[[str], Path]
SHARD_BYTES = 150_000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """112 million weights, most of them in one tensor: three slices of a GPU, and several steps of its hash."""
    tensors = dense(2, 256)
    for name, rows in (("gate", 26_624), ("up", 13_312)):
        rows_of = made_rows(rows * 2816, 2816, torch.bfloat16, seed=rows, chunk=13_312 * 2816)
        tensors[f"model.layers.0.mlp.{name}_proj.weight"] = torch.cat([r.clamp(-1e30, 1e30).cpu() for r in rows_of])
    return save_tensors(tmp_path_factory.mktemp("large") / "model", tensors, LLAMA)


@pytest.fixture(scope="module")
def large_on_cpu(large: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("cpu") / "out"
    quantize(str(large), out, load_recipe(), device="cpu", max_shard_bytes=40_000_000)
    return tree(out)


@pytest.mark.parametrize("device", ["cuda", "cuda:0,cpu", "cpu,cuda:0", "cuda:0,cuda:0"])
def test_any_devices_give_the_bytes_of_the_cpu(
    family: Family, coded: Family, family_name: str, device: str, tmp_path: Path
) -> None:
    quantize(str(family(family_name)), tmp_path / "out", load_recipe(), device=device, max_shard_bytes=SHARD_BYTES)
    assert tree(tmp_path / "out") == tree(coded(family_name))


@pytest.mark.parametrize("recipe", ["classic", "attention-plus-one", "head"])
def test_any_recipe_gives_the_bytes_of_the_cpu(family: Family, recipe: str, tmp_path: Path) -> None:
    for device in ("cpu", "cuda"):
        quantize(
            str(family("gemma4")), tmp_path / device, load_recipe(recipe), device=device, max_shard_bytes=SHARD_BYTES
        )
    assert tree(tmp_path / "cuda") == tree(tmp_path / "cpu")


@pytest.mark.parametrize("device", ["cuda", "cuda,cpu"])
@pytest.mark.parametrize("weights", [300_000, pipeline.GPU_SLICE_WEIGHTS])
def test_large_tensors_in_slices_of_any_size_have_the_bytes_of_the_cpu(
    large: Path,
    large_on_cpu: dict[str, str],
    device: str,
    weights: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline, "GPU_SLICE_WEIGHTS", weights)
    monkeypatch.setattr(open_shard, "STEP_BYTES", 5_000_000)
    trace = Trace()
    quantize(
        str(large),
        tmp_path / "out",
        load_recipe(),
        device=device,
        max_shard_bytes=40_000_000,
        trace=trace,
        threads=12,
    )
    assert tree(tmp_path / "out") == large_on_cpu
    done = {"start GPU", "start kernels", "read", "code", "write", "hash tensor", "sync"}
    assert {what for what, *_ in trace.spans} >= done


def test_memory_of_the_device_is_a_slice_and_its_codes_a_worker(
    large: Path, large_on_cpu: dict[str, str], tmp_path: Path
) -> None:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved(CUDA)
    torch.cuda.reset_peak_memory_stats(CUDA)
    trace = Trace()
    quantize(
        str(large),
        tmp_path / "out",
        load_recipe(),
        device="cuda",
        max_shard_bytes=40_000_000,
        threads=4,
        trace=trace,
    )
    assert tree(tmp_path / "out") == large_on_cpu
    slice_bytes = 2 * pipeline.GPU_SLICE_WEIGHTS
    assert slice_bytes < trace.notes["peak_device_bytes"] - held < 4 * 2 * slice_bytes


def test_plain_torch_takes_turns_and_gives_the_same_bytes(
    family: Family, coded: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (codec_rows, encode):
        monkeypatch.setattr(module, "supports_nvrtc", lambda device: False)
    quantize(str(family("gemma4")), tmp_path / "out", load_recipe(), device="cuda", max_shard_bytes=SHARD_BYTES)
    assert tree(tmp_path / "out") == tree(coded("gemma4"))


def test_first_bad_weight_in_the_order_taken_is_named(tmp_path: Path) -> None:
    tensors = dense(6, 256)
    for layer, row in ((2, 200), (4, 0)):
        tensors[f"model.layers.{layer}.self_attn.q_proj.weight"][row, 7] = float("nan")
    model = save_tensors(tmp_path / "m", tensors, LLAMA)
    with pytest.raises(NonFiniteError, match=r"layers\.2\.self_attn\.q_proj\.weight\[200, 7\] is nan"):
        quantize(str(model), tmp_path / "out", load_recipe(), device="cuda", threads=4)
    assert not [p.name for p in (tmp_path / "out").iterdir() if p.name.endswith((".partial", ".safetensors"))]


def test_the_command_says_its_result_and_leaves_with_its_code(family: Family, coded: Family, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("quantize", family("gemma4"), out, "--device", "cuda", "--max-shard-size", "150000")
    ran = hlwq_process(*command)
    assert (ran.code, ran.out.splitlines()[-1]) == (0, f"Next: hlwq inspect {out} --verify")
    assert tree(out) == tree(coded("gemma4"))
    assert hlwq_process(*command, "--bits", "4").code == 5


def test_memory_of_a_worker_is_registered_and_released() -> None:
    allocated = torch.cuda.host_memory_stats().get("allocated_bytes.current", 0)
    for _ in range(3):  # the same addresses come again, which may be registered once at a time
        memory = HostMemory(5_000_000, pin=True)
        assert memory.pinned
        assert memory.bytes.is_pinned()
        assert torch.equal(memory.bytes.to(CUDA, non_blocking=True).cpu(), torch.zeros(5_000_000, dtype=torch.uint8))
        del memory
    assert torch.cuda.host_memory_stats().get("allocated_bytes.current", 0) == allocated
