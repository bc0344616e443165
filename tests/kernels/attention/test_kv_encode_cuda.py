"""The CUDA encoder of cached tokens, compiled for the CPU: the bytes of the reference."""

from __future__ import annotations

import ctypes

import pytest
import torch

from hlwq_kernels.attention import encode_kv_reference, padded_dim
from hlwq_kernels.attention.kv_encode import SOURCE, THREADS, kv_encode_macros
from hlwq_kernels.common import compile_kernel
from tests.kernels.attention.kv_cases import tables
from tests.kernels.encode.test_cuda_config import local_bytes
from tests.support.cuda_on_cpu import library

_LAUNCH = """
static i64 a[7];
extern "C" void launch(unsigned grid, unsigned threads, const i64* arguments) {
    memcpy(a, arguments, sizeof(a));
    run_grid({grid, 1, 1}, threads, []() {
        encode_tokens((const void*)a[0], a[1], (const float*)a[2], (const float*)a[3], (const float*)a[4], (u32*)a[5],
                      (u8*)a[6]);
    });
}
"""
KINDS = [(2, 64), (3, 80), (4, 128), (5, 96), (6, 192), (7, 64), (8, 512)]


def encoded(x: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`encode_kv` by the kernel's source, on two CTAs."""
    t, dim = tables(bits), x.shape[-1]
    codes = torch.full((*x.shape[:-1], padded_dim(dim) * bits // 8), 0xA5, dtype=torch.uint8)
    scales = torch.full(x.shape[:-1], 0xA5, dtype=torch.uint8)
    tensors = (t.boundaries, t.centroids, t.scales, codes, scales)
    addresses = [x.data_ptr(), scales.numel(), *(a.data_ptr() for a in tensors)]
    launcher = library(SOURCE, kv_encode_macros(bits, dim, x.dtype), _LAUNCH)
    launcher.launch(2, THREADS, (ctypes.c_longlong * len(addresses))(*addresses))
    return codes, scales


@pytest.mark.parametrize(("bits", "dim"), KINDS)
def test_hostile_tokens_have_the_bytes_of_the_reference(bits: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    x = torch.randn(3, 9, dim, generator=generator) * 10.0 ** torch.linspace(-9, 9, 9)[:, None]
    x[0, 0], x[0, 1, 3], x[0, 2, 3] = 0.0, torch.nan, torch.inf
    x[1], x[2, :, 1:] = x[1] * 1e-20, 0.0
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        codes, scales = encoded(x.to(dtype).contiguous(), bits)
        expected_codes, expected_scales = encode_kv_reference(x.to(dtype), tables(bits))
        assert torch.equal(scales, expected_scales), (dtype, scales, expected_scales)
        assert torch.equal(codes, expected_codes), dtype


@pytest.mark.parametrize(("bits", "dim"), [(4, 128), (8, 512), (3, 80)])
def test_it_spills_nothing_on_the_device_it_was_tuned_for(bits: int, dim: int) -> None:
    macros = kv_encode_macros(bits, dim, torch.bfloat16)
    spilled = local_bytes(bytes(compile_kernel(SOURCE, "encode_tokens", macros, "sm_90", fma=False).code))
    assert spilled == 0


def test_it_compiles_for_older_generations() -> None:
    for arch in ("sm_75", "sm_80"):
        macros = kv_encode_macros(4, 128, torch.bfloat16)
        assert compile_kernel(SOURCE, "encode_tokens", macros, arch, fma=False).code
