"""What lies in a folder, read without hlwq: the tests' own witness."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open


@dataclass(frozen=True)
class Stored:
    """A tensor as stored: its type, shape and bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @property
    def values(self) -> torch.Tensor:
        types = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "U8": torch.uint8}
        return torch.frombuffer(bytearray(self.data), dtype=types[self.dtype]).view(self.shape)


def read_file(path: Path) -> dict[str, Stored]:
    """Every tensor of a safetensors file, by offsets in its header."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    data = raw[8 + length :]
    return {name: Stored(e["dtype"], tuple(e["shape"]), data[slice(*e["data_offsets"])]) for name, e in header.items()}


def read_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a checkpoint."""
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in read_file(path).items()}


def opens_with_safetensors(folder: Path) -> bool:
    """Whether the safetensors library itself reads every file."""
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as f:
            for name in f.keys():  # noqa: SIM118
                f.get_tensor(name)
    return True


def read_json(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def edit_json(path: Path, **changes: Any) -> None:
    """Replace top-level keys of a JSON file."""
    path.write_text(json.dumps(read_json(path) | changes))


def write_header(path: Path, header: bytes | Mapping[str, Any], data: bytes = b"", length: int | None = None) -> Path:
    """Write a safetensors file whose header says what it likes."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def edit_header(path: Path, edit: Any) -> None:
    """Change a file's header in place and leave its data and size as they are, padding with spaces."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    edit(header)
    new = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    assert len(new) == length, "the changed header must fit"
    path.write_bytes(raw[:8] + new + raw[8 + length :])


def tree(folder: Path) -> dict[str, str]:
    """sha256 of every file, by its name relative to `folder`, hidden ones too."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def relative_error(found: torch.Tensor, true: torch.Tensor) -> float:
    """||W - W'||^2 / ||W||^2, in double precision."""
    return float((found.double() - true.double()).square().sum() / true.double().square().sum())
