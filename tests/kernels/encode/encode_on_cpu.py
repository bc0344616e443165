"""The CUDA encoder's source on the CPU: see cuda_on_cpu."""

from __future__ import annotations

import torch

from hlwq_kernels.codes import CodeTables
from hlwq_kernels.encode.cuda_config import SOURCE, EncodeKernelConfig, kernel_table, searched_values
from hlwq_kernels.encode.cuda_gpu import arrangement, empty, kernel_arguments, whole_blocks
from hlwq_kernels.encode.types import EncodedRows, ScaleKind
from tests.support.cuda_on_cpu import addresses, library

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
