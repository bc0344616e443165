"""The products compile for every generation of GPU and every width, without a GPU."""

import pytest

from hlwq_kernels.common import compile_kernel
from tests.kernels.weights import BITS

COPIES = {2: 32, 3: 32, 4: 32, 5: 8, 6: 2, 7: 32, 8: 32}


def lookup(bits: int, threads: int) -> list[tuple[str, str | int]]:
    return [("BITS", bits), ("ALIGN", 8), ("COPIES", COPIES[bits]), ("INPUT", 1), ("OUTPUT", 1), ("THREADS", threads)]


@pytest.mark.parametrize(
    ("bits", "arch"), [*((b, "sm_90") for b in BITS), (3, "sm_75"), (5, "sm_75"), (8, "sm_75"), (5, "sm_80")]
)
def test_products_compile_for_every_width_and_generation(bits: int, arch: str) -> None:
    few = (*lookup(bits, 256), ("N", 64), ("LOG8", 1), ("SPLIT", 4), ("TILES", 2))
    assert compile_kernel("linear/gemm_small_m.cu", "gemm_small_m", few, arch).code
    for experts, gate, log8, name in (
        (0, 0, 1, "gemv"), (1, 0, 1, "moe_gemv_up"), (2, 2, 0, "moe_gemv_down"),
    ):  # fmt: skip
        one = (*lookup(bits, 352), ("N", 64), ("LOG8", log8), ("COLUMNS", 704), ("TEAMS", 2), ("CTAS", 2),
               ("EXPERTS", experts), ("TOP_K", 8), ("GATE", gate), ("NAME", name))  # fmt: skip
        assert compile_kernel("linear/gemv.cu", name, one, arch).code


@pytest.mark.parametrize("n", [32, 64, 128, 256])
def test_the_rotation_compiles_for_every_block_size_and_gate(n: int) -> None:
    for gate in (0, 1, 2):
        macros = (("INPUT", 1), ("N", n), ("GATE", gate))
        assert compile_kernel("linear/rotate.cu", "rotate_rows", macros, "sm_90").code
