"""Which implementation runs, and that it does not matter."""

import os
import subprocess
import sys

import pytest

Schemes = list[tuple[int, int, str, bool]]

# Prints the digest of what several schemes make of lcg_rows, then which implementations were loaded or, for the
# references, called.
SCRIPT = """
import sys
{first}
from hlwq_kernels import encode_rows
from hlwq_kernels.encode import reference
from tests.kernels.weights import decoded, digest, lcg_rows, tables
ran, plain = set(), reference.encode_rows_reference
def followed(*args):
    ran.add("hlwq_kernels.encode.reference")
    return plain(*args)
reference.encode_rows_reference = followed
weight, made = lcg_rows(), []
for bits, n, scale, search in {schemes}:
    coded = encode_rows(weight, tables(bits), n, scale, search)
    made += [coded.codes, coded.scales, coded.base, decoded(coded, tables(bits), n, weight.shape[1])]
ran |= {{m for m in sys.modules if m.startswith("hlwq_kernels.") and m.endswith("numba_cpu")}}
print(digest(*made), *sorted(ran))
"""

SCHEMES = [(5, 64, "log8", True), (7, 32, "log8", False), (4, 128, "fp16", True)]
OF_ONE_BLOCK_SIZE = [(5, 64, "log8", True), (7, 64, "log8", False), (4, 64, "fp16", True)]
"""numba compiles for each block size, which takes seconds where it cannot be cached."""


def run(first: str = "", schemes: Schemes = SCHEMES, **environment: str) -> list[str]:
    command = [sys.executable, "-c", SCRIPT.format(first=first, schemes=schemes)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split()


@pytest.fixture(scope="module")
def compiled() -> list[str]:
    return run()


def test_the_compiled_code_is_what_runs_here(compiled: list[str]) -> None:
    assert compiled[1:] == ["hlwq_kernels.decode.numba_cpu", "hlwq_kernels.encode.numba_cpu"]


def test_without_numba_the_bytes_are_the_same(compiled: list[str]) -> None:
    plain = run('sys.modules["numba"] = None')
    assert plain[1:] == ["hlwq_kernels.encode.reference"]
    assert plain[0] == compiled[0]


def test_where_no_folder_can_hold_numbas_cache_the_bytes_are_the_same() -> None:
    nowhere = {"NUMBA_CACHE_LOCATOR_CLASSES": "UserWideCacheLocator", "HOME": os.devnull, "XDG_CACHE_HOME": os.devnull}
    cached = run(schemes=OF_ONE_BLOCK_SIZE)
    assert run(schemes=OF_ONE_BLOCK_SIZE, NUMBA_CACHE_DIR="", **nowhere) == cached
