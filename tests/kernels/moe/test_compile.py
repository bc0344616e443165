"""Routing and the weighted sum compile for every generation of GPU and every dtype, without a GPU."""

import pytest

from hlwq_kernels.common import compile_kernel
from tests.kernels.older_gpus import OLDER


@pytest.mark.parametrize(("arch", "kind"), [*(("sm_90", kind) for kind in (0, 1, 2)), *OLDER])
def test_routing_compiles_for_every_dtype_and_generation(arch: str, kind: int) -> None:
    macros = (("INPUT", kind), ("OUTPUT", kind), ("THREADS", 128), ("EXPERTS", 128), ("TOP_K", 8))
    assert compile_kernel("moe/router.cu", "route_topk", macros, arch).code


@pytest.mark.parametrize(("arch", "kind"), [*(("sm_90", kind) for kind in (1, 2)), *OLDER])
def test_the_weighted_sum_compiles_for_both_dtypes_of_16_bits_and_every_generation(arch: str, kind: int) -> None:
    macros = (("INPUT", kind), ("OUTPUT", kind), ("THREADS", 352))
    assert compile_kernel("moe/combine.cu", "combine_expert_outputs", macros, arch).code
