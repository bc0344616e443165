"""The kernels of a decode step compile for every generation of GPU and every dtype, without a GPU."""

import pytest

from hlwq_kernels.common import compile_kernel
from tests.kernels.older_gpus import OLDER


@pytest.mark.parametrize(("arch", "kind"), [*(("sm_90", kind) for kind in (0, 1, 2)), *OLDER])
def test_norms_compile_for_every_dtype_and_generation(arch: str, kind: int) -> None:
    for name in ("fused_add_rmsnorm_pre_ffn", "fused_add_rmsnorm_post_ffn"):
        macros = (("INPUT", kind), ("OUTPUT", kind), ("THREADS", 352), ("COLUMNS", 2816))
        assert compile_kernel("decode_step/norms.cu", name, macros, arch).code


@pytest.mark.parametrize(("arch", "kind"), [*(("sm_90", kind) for kind in (0, 1, 2)), *OLDER])
def test_norms_of_heads_compile_for_every_dtype_and_generation(arch: str, kind: int) -> None:
    macros = (("INPUT", kind), ("OUTPUT", kind), ("THREADS", 32), ("SIZE", 512), ("QUERIES", 16), ("KEYS", 2))
    for table in (0, 1):
        assert compile_kernel(
            "decode_step/qk_norm_rope.cu", "qk_norm_rope_append", (*macros, ("TABLE", table)), arch
        ).code


@pytest.mark.parametrize(("arch", "kind"), [*(("sm_90", kind) for kind in (1, 2)), *OLDER])
def test_attention_compiles_for_both_dtypes_of_16_bits_and_every_generation(arch: str, kind: int) -> None:
    macros = (("INPUT", kind), ("OUTPUT", kind), ("THREADS", 128), ("SIZE", 256), ("GROUP", 2))
    for name in ("decode_attention", "combine_decode_splits"):
        assert compile_kernel("decode_step/decode_attention.cu", name, macros, arch).code
