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
many = [None if t is None else torch.cat([t[:2]] * 300) for t in stored]
wanted = torch.tensor([0, 3, 0, 1], dtype=torch.int32)
some = decode_rows_triton(*many, centroids, n, 3 * n, torch.float32, wanted).view(4, 150, -1)
whole = decode_rows_triton(*many, centroids, n, 3 * n, torch.float32).view(4, 150, -1)
assert torch.equal(some[[1, 3]], whole[[1, 3]])
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

ATTEND = """
import torch
from hlwq_kernels.attention import Rule
from hlwq_kernels.attention_triton import attend_triton
from tests.kernels.cached_cases import expected, make_case
for layout, bits, coded, exact, softcap in {kind}:
    mask = torch.rand(2, 1, 1, coded + exact) < 0.7
    mask[..., -1] = True
    for dtype, shown in ((torch.float32, None), (torch.float16, mask)):
        case = make_case(layout, coded, exact, bits, dtype=dtype)
        rule = Rule(layout[2] ** -0.5, softcap, shown)
        flat = None if shown is None else shown[:, 0, 0]
        found = attend_triton(case.query[:, :, 0], case.keys, case.values, flat, rule.scaling, softcap)
        exactly = expected(case, rule)[:, :, 0]
        assert found.dtype == dtype
        off = (found.double() - exactly).abs().max() / exactly.abs().max()
        assert off < 3e-3, (layout, bits, coded, exact, dtype, float(off))
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

ATTEND_KINDS = [
    ((2, 3, 64, 64), (4, 4), 0, 1, 0.0),
    ((2, 3, 64, 64), (4, 4), 1, 1, 0.0),
    ((2, 3, 64, 64), (4, 4), 129, 64, 0.0),
    ((1, 2, 80, 96), (3, 2), 160, 70, 0.0),
    ((1, 4, 128, 128), (2, 3), 130, 70, 1.5),
    ((1, 18, 64, 64), (8, 5), 96, 70, 0.0),
    ((1, 2, 64, 128), (6, 7), 96, 70, 0.0),
    ((1, 8, 512, 512), (4, 4), 64, 33, 0.0),
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_interpreted_decoder_makes_what_the_torch_twin_makes(kind: tuple[int, int, str]) -> None:
    run_interpreted(DECODE, kind)


def test_the_interpreted_encoder_of_tokens_makes_the_bytes_of_the_torch_twin() -> None:
    run_interpreted(TOKENS, TOKEN_KINDS)


def test_interpreted_attention_is_attention_over_the_decoded_cache() -> None:
    run_interpreted(ATTEND, ATTEND_KINDS)


def run_interpreted(script: str, kind: object) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", "-c", script.format(kind=kind)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
