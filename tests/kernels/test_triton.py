"""The Triton decoder, interpreted on the CPU: the values of the torch twin.

In another process, because Triton reads TRITON_INTERPRET when it is imported. Results in bfloat16 are left to
tests/gpu: the interpreter cuts where a device rounds.
"""

import os
import subprocess
import sys

import pytest

DECODE = """
import torch
from hlwq_kernels.decode import decode_rows_torch
from hlwq_kernels.decode_triton import decode_rows_triton
from tests.kernels.test_decode_rows import random_stored
from tests.kernels.weights import digest, tables
bits, n, scale = {kind}
stored, centroids = random_stored(bits, n, scale)[1], torch.from_numpy(tables(bits).centroids)
for columns in (3 * n, 2 * n + 1):
    twin = decode_rows_torch(*stored, centroids, n, columns)
    for dtype in (torch.float32, torch.float16):
        compiled = decode_rows_triton(*stored, centroids, n, columns, dtype)
        assert compiled.shape == twin.shape
        assert digest(compiled) == digest(twin.to(dtype)), (columns, dtype)
"""

TOKENS = """
import torch
from hlwq_kernels.tokens import encode_tokens_torch
from hlwq_kernels.tokens_triton import encode_tokens_triton
from tests.kernels.cached_cases import tables
for bits, dim in {kind}:
    x = torch.randn(3, 7, dim) * 10.0 ** torch.linspace(-9, 9, 7)[:, None]
    x[0, 0], x[0, 1, 3], x[0, 2, 3] = 0.0, torch.nan, torch.inf
    x[1], x[2, :, 1:] = x[1] * 1e-20, 0.0
    for dtype in (torch.float32, torch.float16):
        compiled, twin = (encode(x.to(dtype), tables(bits)) for encode in (encode_tokens_triton, encode_tokens_torch))
        assert torch.equal(compiled[1], twin[1]), (bits, dim, dtype)
        assert torch.equal(compiled[0], twin[0]), (bits, dim, dtype)
"""

KINDS = [
    (2, 64, "log8"),
    (5, 64, "log8"),
    (8, 64, "log8"),
    (5, 128, "fp16"),
    (3, 32, "fp16"),
    (6, 32, "log8"),
    (7, 256, "log8"),
]


TOKEN_KINDS = [(2, 64), (3, 80), (4, 128), (5, 96), (6, 64), (7, 64), (8, 256)]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_interpreted_decoder_makes_what_the_torch_twin_makes(kind: tuple[int, int, str]) -> None:
    run_interpreted(DECODE, kind)


def test_the_interpreted_encoder_of_tokens_makes_the_bytes_of_the_torch_twin() -> None:
    run_interpreted(TOKENS, TOKEN_KINDS)


def run_interpreted(script: str, kind: object) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", "-c", script.format(kind=kind)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
