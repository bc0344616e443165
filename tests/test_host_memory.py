"""Pinned host memory where there is no GPU: what is asked of CUDA, in which order, and what becomes of refusals."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from hlwq_cli.checkpoint.run import Device, devices
from hlwq_cli.errors import HlwqError
from hlwq_cli.host_memory import HostMemory

SIZE = 3 * 2**20 + 5


class Runtime:
    """Stands for CUDA: two devices, of which the second is current; notes calls as (what, address, device)."""

    def __init__(self, error: int = 0) -> None:
        self.error, self.device = error, 1
        self.calls: list[tuple[str, int, int]] = []

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:
        assert (nbytes, flags) == (SIZE, 1)
        self.calls.append(("register", address, self.device))
        return self.error

    def cudaHostUnregister(self, address: int) -> int:
        self.calls.append(("unregister", address, self.device))
        return 0

    @contextmanager
    def chosen(self, device: int) -> Iterator[None]:
        before, self.device = self.device, device
        yield
        self.device = before


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Runtime]:
    def install(error: int) -> Runtime:
        runtime = Runtime(error)
        monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: runtime.device)
        monkeypatch.setattr(torch.cuda, "device", runtime.chosen)
        return runtime

    return install


def test_memory_is_registered_once_and_unregistered_by_the_same_device(cuda: Callable[[int], Runtime]) -> None:
    runtime = cuda(0)
    memory = HostMemory(SIZE, pin=True)
    assert memory.pinned
    assert (memory.bytes.shape, memory.bytes.dtype) == ((SIZE,), torch.uint8)
    assert not memory.bytes.any()
    view, address = memory.bytes[10:20], memory.bytes.data_ptr()
    assert runtime.calls == [("register", address, 1)]
    runtime.device = 0
    del memory
    gc.collect()
    assert runtime.calls[1:] == [("unregister", address, 1)]
    assert runtime.device == 0
    assert view.tolist() == [0] * 10  # still there, though pinned no more


def test_where_registering_is_refused_torch_is_asked(
    cuda: Callable[[int], Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, asked, zeros = cuda(712), list[int](), torch.zeros

    def pinned(*shape: Any, pin_memory: bool = False, **settings: Any) -> torch.Tensor:
        if "device" in settings:
            raise RuntimeError("CUDA error: the refusal, which was still pending")
        asked.append(shape[0] if pin_memory else -1)
        return zeros(*shape, **settings)

    monkeypatch.setattr(torch, "zeros", pinned)
    memory = HostMemory(SIZE, pin=True)
    assert memory.pinned
    assert asked == [SIZE]
    assert len(memory.bytes) == SIZE
    del memory
    assert [what for what, *_ in runtime.calls] == ["register"]


def test_memory_that_cannot_be_pinned_is_ordinary_and_told_once(
    cuda: Callable[[int], Runtime], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda(712)

    def refused(*shape: Any, **settings: Any) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch, "zeros", refused)
    devices._warn_unpinned.cache_clear()
    memories = [Device(torch.device("cuda")).host_memory(SIZE) for _ in range(2)]
    devices._warn_unpinned.cache_clear()
    assert [m.pinned for m in memories] == [False, False]
    assert [len(m.bytes) for m in memories] == [SIZE, SIZE]
    assert [r.getMessage() for r in caplog.records] == ["Host memory cannot be pinned: copies to the GPU are slow."]


def test_memory_for_a_processor_asks_nothing_of_cuda(cuda: Callable[[int], Runtime]) -> None:
    runtime = cuda(0)
    memory = HostMemory(SIZE, pin=False)
    memory.bytes.fill_(7)
    assert not memory.pinned
    assert runtime.calls == []
    assert int(memory.bytes.sum(dtype=torch.int64)) == 7 * SIZE


def test_room_that_is_not_there_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(HlwqError, match=r"no 1152921\.50 TB of memory for a thread's buffer") as caught:
        Device(torch.device("cpu")).host_memory(2**60)
    assert "--threads" in str(caught.value.hint)


def test_a_gpu_that_cannot_be_started_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(place: torch.device) -> None:
        raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later.")

    monkeypatch.setattr(torch.cuda, "device", refused)
    with pytest.raises(HlwqError, match=r"^cuda:1 cannot be used: CUDA error: out of memory\.") as caught:
        Device(torch.device("cuda", 1)).host_memory(64)
    assert "--device cpu" in str(caught.value.hint)
