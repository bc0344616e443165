"""CUDA kernels on the CPU: their very sources, compiled by g++ with cuda_on_cpu.h in the place of common/ptx.cuh."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch

from hlwq_kernels import CodeTables, EncodedRows
from hlwq_kernels.common.cuda_kernel import Macros, source_text
from hlwq_kernels.encode import ScaleKind
from hlwq_kernels.encode.cuda_config import SOURCE, EncodeKernelConfig, kernel_table, searched_values
from hlwq_kernels.encode.cuda_gpu import arrangement, empty, kernel_arguments, whole_blocks

_LAUNCH = """
static i64 a[12];
extern "C" void launch(unsigned grid, unsigned threads, const i64* arguments) {
    memcpy(a, arguments, sizeof(a));
    run_grid({grid, 1, 1}, threads, []() {
        encode((const uint4*)a[0], a[1], a[2], a[3], (const u32*)a[4], a[5], (u8*)a[6], a[7], (void*)a[8], (u16*)a[9],
               (double*)a[10], (double*)a[11]);
    });
}
"""
_OPTIONS = (
    "-x", "c++", "-std=c++17", "-nostdinc++", "-O0", "-ffp-contract=off", "-fno-strict-aliasing", "-w", "-shared",
    "-fPIC",
)  # fmt: skip


@lru_cache(maxsize=None)
def library(source: str, macros: Macros, launch: str) -> ctypes.CDLL:
    """Return a source specialized by macros, with a function `launch` that runs a kernel of it."""
    text = source_text(source, {"common/ptx.cuh": Path(__file__).with_suffix(".h")})
    code = f"{text}\n{launch}"
    return ctypes.CDLL(str(compiled(code, (*_OPTIONS, *(f"-D{name}={value}" for name, value in macros)))))


def compiled(code: str, options: tuple[str, ...]) -> Path:
    """Return the shared library of C++ code; it is kept between runs, under a hash of all that decides it."""
    content = "\0".join([_compiler(), *options, code])
    path = _cache() / f"{hashlib.sha256(content.encode()).hexdigest()}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            built = Path(folder) / path.name
            subprocess.run(["g++", *options, "-o", str(built), "-"], input=code, text=True, check=True)
            built.replace(path)
    return path


@lru_cache(maxsize=None)
def _compiler() -> str:
    return subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout


@lru_cache(maxsize=None)
def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home) / "hlwq-tests" / "cuda-on-cpu"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def encode_rows_emulated(
    weight: torch.Tensor, tables: CodeTables, block_size: int, scale: ScaleKind, search: bool, large_smem: bool = True
) -> EncodedRows:
    """`encode_rows` by the CUDA kernel's source, on two CTAs."""
    whole, log8 = whole_blocks(weight, block_size), scale == "log8"
    out = empty(whole, tables.bits, block_size, log8)
    for tensor in out:
        tensor.view(torch.uint8).fill_(0xA5)
    config = EncodeKernelConfig(tables.bits, block_size, log8, search, whole.dtype, large_smem=large_smem)
    config, held, threads = arrangement(config, *out[1].shape)
    table, cells = torch.from_numpy(kernel_table(tables, config)), len(searched_values(tables))
    assert config.shared_bytes(threads, cells) <= 16 * 2**16, "see `arena`"
    arguments = kernel_arguments(whole, held, table, cells, out)
    library(SOURCE, config.macros, _LAUNCH).launch(2, threads, addresses(arguments))
    codes, scales, base, error, energy = out
    return EncodedRows(codes, scales, base if log8 else None, error, energy)


def addresses(arguments: Sequence[torch.Tensor | int]) -> ctypes.Array[ctypes.c_longlong]:
    """What a kernel takes, as 64 bits each."""
    values = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments]
    return (ctypes.c_longlong * len(values))(*values)
