"""Device memory that kernels share between launches."""

from __future__ import annotations

import torch


class Scratch:
    """Device memory that kernels on one stream share between launches.

    Outgrown buffers are kept, because CUDA graphs may point to them.
    """

    def __init__(self) -> None:
        self._floats: list[torch.Tensor] = []
        self._counts: list[torch.Tensor] = []
        self._side: torch.cuda.Stream | None = None
        self._for_side: Scratch | None = None

    def for_side_stream(self) -> Scratch:
        """Return the scratch memory of what runs on the side stream."""
        self._for_side = self._for_side or Scratch()
        return self._for_side

    def side_stream(self, device: torch.device) -> torch.cuda.Stream:
        """Return the stream for work that the rest of a step does not wait for."""
        self._side = self._side or torch.cuda.Stream(device)
        return self._side

    def floats(self, count: int, device: torch.device) -> torch.Tensor:
        """Return a float32 tensor of at least `count` values; they are undefined."""
        if not self._floats or self._floats[-1].numel() < count:
            self._floats.append(torch.empty(count, dtype=torch.float32, device=device))
        return self._floats[-1]

    def counts(self, count: int, device: torch.device) -> torch.Tensor:
        """Return an int32 tensor of at least `count` zeros; kernels that write to it leave zeros behind."""
        if not self._counts or self._counts[-1].numel() < count:
            self._counts.append(torch.zeros(count, dtype=torch.int32, device=device))
        return self._counts[-1]
