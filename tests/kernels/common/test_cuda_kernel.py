"""The CUDA C++ sources compile for every generation of GPU and every width, with no GPU at hand, and spill nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from hlwq_kernels.common.cuda_kernel import compile_kernel, missing_packages, source_text
from tests.kernels.weights import BITS

COPIES = {2: 32, 3: 32, 4: 32, 5: 8, 6: 2, 7: 32, 8: 32}
OLDER = [("sm_75", 1), ("sm_75", 2), ("sm_80", 2)]
"""Generations differ in ptx.cuh alone, by the same lines for every width and type: older ones with some of these."""


def lookup(bits: int, threads: int) -> list[tuple[str, str | int]]:
    return [("BITS", bits), ("ALIGN", 8), ("COPIES", COPIES[bits]), ("INPUT", 1), ("OUTPUT", 1), ("THREADS", threads)]


@pytest.mark.parametrize(
    ("bits", "arch"), [*((b, "sm_90") for b in BITS), (3, "sm_75"), (5, "sm_75"), (8, "sm_75"), (5, "sm_80")]
)
def test_products_compile(bits: int, arch: str) -> None:
    few = (*lookup(bits, 256), ("N", 64), ("LOG8", 1), ("SPLIT", 4), ("TILES", 2))
    assert compile_kernel("linear/gemm_small_m.cu", "gemm_small_m", few, arch).code
    for experts, gate, log8, name in (
        (0, 0, 1, "gemv"), (1, 0, 1, "moe_gemv_up"), (2, 2, 0, "moe_gemv_down"),
    ):  # fmt: skip
        one = (*lookup(bits, 352), ("N", 64), ("LOG8", log8), ("COLUMNS", 704), ("TEAMS", 2), ("CTAS", 2),
               ("EXPERTS", experts), ("TOP_K", 8), ("GATE", gate), ("NAME", name))  # fmt: skip
        assert compile_kernel("linear/gemv.cu", name, one, arch).code


@pytest.mark.parametrize("n", [32, 64, 128, 256])
def test_rotation_compiles(n: int) -> None:
    for gate in (0, 1, 2):
        macros = (("INPUT", 1), ("N", n), ("GATE", gate))
        assert compile_kernel(
            "linear/rotate.cu",
            "rotate_rows",
            macros,
            "sm_90",
        ).code


def test_what_kernels_need_is_named_where_it_is_not_there() -> None:
    assert missing_packages(13) == ""
    assert missing_packages(12) == "cuda-bindings==12.*"


@pytest.mark.parametrize(("arch", "kind"), [*(("sm_90", kind) for kind in (0, 1, 2)), *OLDER])
def test_what_a_step_does_between_products_compiles(arch: str, kind: int) -> None:
    types = (("INPUT", kind), ("OUTPUT", kind))
    for name in ("fused_add_rmsnorm_pre_ffn", "fused_add_rmsnorm_post_ffn"):
        macros = (*types, ("THREADS", 352), ("COLUMNS", 2816))
        assert compile_kernel("decode_step/norms.cu", name, macros, arch).code
    heads = (*types, ("THREADS", 32), ("SIZE", 512), ("QUERIES", 16), ("KEYS", 2))
    assert compile_kernel(
        "decode_step/qk_norm_rope.cu",
        "qk_norm_rope_append",
        heads,
        arch,
    ).code
    routes = (*types, ("THREADS", 128), ("EXPERTS", 128), ("TOP_K", 8))
    assert compile_kernel("moe/router.cu", "route_topk", routes, arch).code
    if kind:
        attends = (*types, ("THREADS", 128), ("SIZE", 256), ("GROUP", 2))
        for name in ("decode_attention", "combine_decode_splits"):
            assert compile_kernel("decode_step/decode_attention.cu", name, attends, arch).code
        weighs = (*types, ("THREADS", 352))
        assert compile_kernel("moe/combine.cu", "combine_expert_outputs", weighs, arch).code


AT_ONCE = """
import threading, time
from hlwq_kernels.common import cuda_kernel
found = []
def ask(delay):
    time.sleep(delay)
    found.append(cuda_kernel.cuda_core().LaunchConfig(grid=1, block=32) is not None)
threads = [threading.Thread(target=ask, args=(d / 50,)) for d in range(8)]
for t in threads: t.start()
for t in threads: t.join()
assert found == [True] * 8, found
"""


def test_threads_may_ask_for_the_first_kernel_at_once() -> None:
    """cuda.core, imported by several threads at once, is half made to all but one of them."""
    ran = subprocess.run([sys.executable, "-c", AT_ONCE], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_a_header_is_included_once_and_a_replaced_one_is_read_elsewhere(tmp_path: Path) -> None:
    for name, text in {
        "a.cu": 'first\n#include "b.cuh"\n#include "c.cuh"\nlast',
        "b.cuh": '#include "c.cuh"\nb',
        "c.cuh": "c",
    }.items():
        (tmp_path / name).write_text(text)
    at = {f"{name}.cuh": tmp_path / f"{name}.cuh" for name in "bc"}
    assert source_text(str(tmp_path / "a.cu"), at).split() == ["first", "c", "b", "last"]
    (tmp_path / "other").write_text("other")
    at["c.cuh"] = tmp_path / "other"
    assert source_text(str(tmp_path / "a.cu"), at).split() == ["first", "other", "b", "last"]


def test_an_unknown_or_circular_include_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.cu").write_text('#include "common/nothing.cuh"')
    with pytest.raises(FileNotFoundError, match=r'a\.cu: #include "common/nothing\.cuh"'):
        source_text(str(tmp_path / "a.cu"))
    (tmp_path / "b.cuh").write_text('#include "c.cuh"')
    (tmp_path / "c.cuh").write_text('#include "b.cuh"')
    (tmp_path / "a.cu").write_text('#include "b.cuh"')
    with pytest.raises(ValueError, match=r"b\.cuh -> c\.cuh -> b\.cuh"):
        source_text(str(tmp_path / "a.cu"), {name: tmp_path / name for name in ("b.cuh", "c.cuh")})
