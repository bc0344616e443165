"""The CUDA encoder compiles for every generation, and a block stays in registers where that matters."""

from __future__ import annotations

import struct

import pytest
import torch

from hlwq_kernels.common import compile_kernel
from hlwq_kernels.encode.cuda_config import SOURCE, EncodeKernelConfig

_FRAME_SIZE = 0x11  # of a .nv.info attribute: bytes of local memory a thread

DEFAULT = EncodeKernelConfig(5, 64, log8=True, search=True, dtype=torch.bfloat16)
FAST = EncodeKernelConfig(5, 64, log8=True, search=False, dtype=torch.bfloat16)
CLASSIC = EncodeKernelConfig(5, 128, log8=False, search=False, dtype=torch.bfloat16)


def local_bytes(cubin: bytes) -> int:
    """The most local memory that a function of a cubin takes a thread: spilled registers lie there."""
    (sections_at,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    headers = [struct.unpack_from("<IIQQQQ", cubin, sections_at + i * size) for i in range(count)]
    found = []
    for name, _, _, _, at, length in headers:
        start = headers[names][4] + name
        if cubin[start : cubin.index(0, start)] == b".nv.info":
            end = at + length
            while at < end:
                form, kind, value = struct.unpack_from("<BBH", cubin, at)
                if kind == _FRAME_SIZE:
                    found.append(struct.unpack_from("<I", cubin, at + 8)[0])
                at += 4 + (value if form == 4 else 0)
    assert found, "a cubin says how much local memory it takes"
    return max(found)


def compiled(config: EncodeKernelConfig, arch: str) -> bytes:
    return bytes(compile_kernel(SOURCE, "encode", config.macros, arch, fma=False).code)


@pytest.mark.parametrize("bits", range(2, 9))
def test_no_register_is_spilled_on_the_device_it_was_tuned_for(bits: int) -> None:
    assert (
        local_bytes(compiled(EncodeKernelConfig(bits, 64, log8=True, search=True, dtype=torch.bfloat16), "sm_90")) == 0
    )


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90"])
@pytest.mark.parametrize("config", [DEFAULT, FAST, CLASSIC], ids=["default", "fast", "classic"])
def test_hardly_a_register_is_spilled_on_any_generation(config: EncodeKernelConfig, arch: str) -> None:
    config = EncodeKernelConfig(**{**vars(config), "large_smem": arch == "sm_90"})
    assert local_bytes(compiled(config, arch)) <= 16


def test_spilled_registers_would_be_seen() -> None:
    assert (
        local_bytes(compiled(EncodeKernelConfig(5, 256, log8=True, search=False, dtype=torch.bfloat16), "sm_90")) > 100
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rows_longer_than_a_cta_and_other_types_compile(dtype: torch.dtype) -> None:
    config = EncodeKernelConfig(5, 64, log8=True, search=True, dtype=dtype, loop=True)
    assert local_bytes(compiled(config, "sm_90")) <= 16
