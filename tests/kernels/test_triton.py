"""The Triton kernels, interpreted on the CPU where Triton is installed: the bytes and values of the torch twins.

In another process, because Triton reads TRITON_INTERPRET when it is imported. Results in bfloat16 are left to
tests/gpu: the interpreter cuts where a device rounds.
"""

import importlib.util
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

ENCODE = """
import torch
from hlwq_kernels.encode_torch import encode_rows_torch
from hlwq_kernels.encode_triton import encode_rows_triton
from tests.kernels.weights import hostile_rows, same_bytes, tables
bits, n, scale, search = {kind}
weight = torch.cat([hostile_rows(n + 65), hostile_rows(n + 65)[:2]])
weight[-1, 3], weight[-2, 5] = torch.nan, torch.inf
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    compiled = encode_rows_triton(weight.to(dtype), tables(bits), n, scale, search)
    twin = encode_rows_torch(weight.to(dtype), tables(bits), n, scale, search)
    assert same_bytes(compiled, twin), dtype
    for mine, its in ((compiled.error, twin.error), (compiled.energy, twin.energy)):
        assert torch.equal(mine.nan_to_num(-1.0), its.nan_to_num(-1.0)), dtype
"""

DECODE = """
import torch
from hlwq_kernels.decode import decode_rows_torch
from hlwq_kernels.decode_triton import decode_rows_triton
from tests.kernels.test_decode_rows import random_stored
from tests.kernels.weights import digest, tables
bits, n, scale, _ = {kind}
stored, centroids = random_stored(bits, n, scale)[1], torch.from_numpy(tables(bits).centroids)
for columns in (3 * n, 2 * n + 1):
    twin = decode_rows_torch(*stored, centroids, n, columns)
    for dtype in (torch.float32, torch.float16):
        compiled = decode_rows_triton(*stored, centroids, n, columns, dtype)
        assert compiled.shape == twin.shape
        assert digest(compiled) == digest(twin.to(dtype)), (columns, dtype)
"""

KINDS = [
    (2, 64, "log8", True),
    (5, 64, "log8", True),
    (8, 64, "log8", False),
    (5, 128, "fp16", False),
    (3, 32, "fp16", True),
    (6, 32, "log8", True),
    (7, 256, "log8", True),
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("script", [ENCODE, DECODE], ids=["encode", "decode"])
def test_interpreted_kernels_make_what_the_torch_twins_make(script: str, kind: tuple[int, int, str, bool]) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", "-c", script.format(kind=kind)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
