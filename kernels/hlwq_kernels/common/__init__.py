"""What every kernel builds on: compiled CUDA C++, custom ops, devices, scratch memory and the shared CUDA headers."""

from .cuda_compiler import Macros, compile_kernel, missing_packages, source_text, supports_nvrtc
from .cuda_kernel import CudaKernel, Launch, reads_pinned_memory, shared_per_multiprocessor
from .custom_op import traceable
from .device import DTYPE_IDS, current_device, dtype_macros, num_sms, supports_triton
from .scratch import Scratch

__all__ = [
    "DTYPE_IDS",
    "CudaKernel",
    "Launch",
    "Macros",
    "Scratch",
    "compile_kernel",
    "current_device",
    "dtype_macros",
    "missing_packages",
    "num_sms",
    "reads_pinned_memory",
    "shared_per_multiprocessor",
    "source_text",
    "supports_nvrtc",
    "supports_triton",
    "traceable",
]
