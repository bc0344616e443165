"""The Triton decoder, interpreted on the CPU: the values of the reference.

In another process, one for all kinds, because Triton reads TRITON_INTERPRET when it is imported. Results in bfloat16
are left to tests/gpu: the interpreter cuts where a device rounds.
"""

import os
import subprocess
import sys

import pytest

DECODE = """
import sys, torch, traceback
from hlwq_kernels.decode import decode_rows_reference
from hlwq_kernels.decode.triton_gpu import decode_rows_triton
from tests.kernels.decode.test_reference import random_stored
from tests.kernels.weights import digest, tables
def compare(bits, n, scale):
    stored, centroids = random_stored(bits, n, scale)[1], torch.from_numpy(tables(bits).centroids)
    for columns in (3 * n, 2 * n + 1):
        expected = decode_rows_reference(*stored, centroids, n, columns)
        for dtype in (torch.float32, torch.float16):
            compiled = decode_rows_triton(*stored, centroids, n, columns, dtype)
            assert compiled.shape == expected.shape
            assert digest(compiled) == digest(expected.to(dtype)), (columns, dtype)
    many = [None if t is None else torch.cat([t[:2]] * 100) for t in stored]
    wanted = torch.tensor([0, 3, 0, 1], dtype=torch.int32)  # of 150 blocks each; 128 are a program's
    some = decode_rows_triton(*many, centroids, n, 3 * n, torch.float32, wanted).view(4, 50, -1)
    whole = decode_rows_triton(*many, centroids, n, 3 * n, torch.float32).view(4, 50, -1)
    assert torch.equal(some[[1, 3]], whole[[1, 3]])
for kind in {kinds}:
    try:
        compare(*kind)
        print(kind)
    except Exception:
        print(kind, traceback.format_exc(), file=sys.stderr)
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


@pytest.fixture(scope="module")
def interpreted() -> tuple[list[str], str]:
    """The kinds that came out right, and what was said of the others."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", "-c", DECODE.format(kinds=KINDS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return done.stdout.splitlines(), done.stderr


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_interpreted_decoder_makes_what_the_reference_makes(
    interpreted: tuple[list[str], str], kind: tuple[int, int, str]
) -> None:
    right, wrong = interpreted
    assert str(kind) in right, wrong
