"""Importance matrices as llama-imatrix writes them, by the package `gguf` and by hand."""

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGUFWriter

Sums = Mapping[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]
"""By the name of a weight its sums (matrices, inputs) and counts (matrices, 1)."""


def write_gguf(path: Path, entries: Sums, kind: str = "imatrix") -> Path:
    writer = GGUFWriter(path, arch="")
    writer.add_type(kind)
    writer.add_array("imatrix.datasets", ["calibration.txt"])
    writer.add_uint32("imatrix.chunk_count", 4)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, (sums, counts) in entries.items():
        writer.add_tensor(f"{name}.in_sum2", sums)
        writer.add_tensor(f"{name}.counts", counts)
        writer.add_tensor(f"{name}.in_sum", sums)  # newer versions add sums of the inputs themselves
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_dat(path: Path, entries: Sums, chunk: int = 512) -> Path:
    """Write the older form: means times the number of chunks; where an expert has seen no token, ones."""
    content = struct.pack("<i", len(entries))
    for name, (sums, counts) in entries.items():
        chunks = -(-int(counts.max()) // chunk)
        means = np.where(counts > 0, sums / np.maximum(counts, 1), 1).astype("<f4") * np.float32(chunks)
        content += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", chunks, means.size)
        content += means.tobytes()
    text = b"calibration.txt"
    path.write_bytes(content + struct.pack("<ii", 4, len(text)) + text)
    return path
