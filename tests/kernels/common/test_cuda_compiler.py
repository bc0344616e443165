"""Sources of kernels: included headers, missing packages, and the first use by several threads."""

import subprocess
import sys
from pathlib import Path

import pytest

from hlwq_kernels.common.cuda_compiler import missing_packages, source_text


def test_packages_that_kernels_need_and_lack_are_named() -> None:
    assert missing_packages(13) == ""
    assert missing_packages(12) == "cuda-bindings==12.*"


AT_ONCE = """
import threading, time
from hlwq_kernels.common import cuda_compiler
found = []
def ask(delay):
    time.sleep(delay)
    found.append(cuda_compiler.cuda_core().LaunchConfig(grid=1, block=32) is not None)
threads = [threading.Thread(target=ask, args=(d / 50,)) for d in range(8)]
for t in threads: t.start()
for t in threads: t.join()
assert found == [True] * 8, found
"""


def test_several_threads_may_use_the_first_kernel_at_once() -> None:
    """cuda.core, imported by several threads at once, is incomplete for all but one of them."""
    ran = subprocess.run([sys.executable, "-c", AT_ONCE], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_a_header_is_included_once_and_a_replacement_is_read_instead_of_it(tmp_path: Path) -> None:
    for name, text in {
        "a.cu": 'first\n#include "b.cuh"\n#include "c.cuh"\nlast',
        "b.cuh": '#include "c.cuh"\nb',
        "c.cuh": "c",
    }.items():
        (tmp_path / name).write_text(text)
    at = {f"{name}.cuh": tmp_path / f"{name}.cuh" for name in "bc"}
    assert source_text(str(tmp_path / "a.cu"), at).split() == ["first", "c", "b", "last"]
    (tmp_path / "other").write_text("other")
    at["c.cuh"] = tmp_path / "other"
    assert source_text(str(tmp_path / "a.cu"), at).split() == ["first", "other", "b", "last"]


def test_an_unknown_or_circular_include_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.cu").write_text('#include "common/nothing.cuh"')
    with pytest.raises(FileNotFoundError, match=r'a\.cu: #include "common/nothing\.cuh"'):
        source_text(str(tmp_path / "a.cu"))
    (tmp_path / "b.cuh").write_text('#include "c.cuh"')
    (tmp_path / "c.cuh").write_text('#include "b.cuh"')
    (tmp_path / "a.cu").write_text('#include "b.cuh"')
    with pytest.raises(ValueError, match=r"b\.cuh -> c\.cuh -> b\.cuh"):
        source_text(str(tmp_path / "a.cu"), {name: tmp_path / name for name in ("b.cuh", "c.cuh")})
