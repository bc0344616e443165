"""The CUDA C++ sources compile for every generation of GPU and every width, with no GPU at hand, and spill nothing."""

import itertools

import pytest

from hlwq_kernels.nvrtc import compile_kernel, missing_packages
from tests.kernels.weights import BITS

COPIES = {2: 32, 3: 32, 4: 32, 5: 8, 6: 2, 7: 32, 8: 32}
ARCHES = ("sm_75", "sm_80", "sm_90")


def lookup(bits: int, threads: int) -> list[tuple[str, int]]:
    return [("BITS", bits), ("ALIGN", 8), ("COPIES", COPIES[bits]), ("INPUT", 1), ("OUTPUT", 1), ("THREADS", threads)]


@pytest.mark.parametrize(("bits", "arch"), list(itertools.product(BITS, ARCHES)))
def test_products_compile(bits: int, arch: str) -> None:
    few = (*lookup(bits, 256), ("N", 64), ("LOG8", 1), ("SPLIT", 4), ("TILES", 2))
    assert compile_kernel(("ptx.cu", "lookup.cu", "matmul.cu"), "multiply_few", few, arch).code
    for experts, gate, log8 in ((0, 0, 1), (1, 0, 1), (2, 2, 0)):
        one = (*lookup(bits, 352), ("N", 64), ("LOG8", log8), ("COLUMNS", 704), ("TEAMS", 2), ("CTAS", 2),
               ("EXPERTS", experts), ("SHARE", 8), ("GATE", gate))  # fmt: skip
        assert compile_kernel(("ptx.cu", "lookup.cu", "rotation.cu", "matvec.cu"), "multiply_one", one, arch).code


@pytest.mark.parametrize("n", [32, 64, 128, 256])
def test_rotation_compiles(n: int) -> None:
    for gate in (0, 1, 2):
        macros = (*lookup(5, 32), ("N", n), ("GATE", gate))
        assert compile_kernel(("ptx.cu", "lookup.cu", "rotation.cu", "rotate.cu"), "rotate_rows", macros, "sm_90").code


def test_what_kernels_need_is_named_where_it_is_not_there() -> None:
    assert missing_packages(13) == ""
    assert missing_packages(12) == "cuda-bindings==12.*"
