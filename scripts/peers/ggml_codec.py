"""ggml's own weight codecs, through ctypes, to compare with: the functions that llama.cpp quantizes with.

    pip install libggml-python
    python scripts/peers/ggml_codec.py

The K-quants need rows of whole 256-weight blocks. Where a matrix has other rows, llama.cpp falls back to a codec in
blocks of 32: Q4_K to Q5_0, Q5_K to Q5_1, Q6_K to Q8_0; so does this module. Run as a program, it prints each codec's
error on Gaussian weights.
"""

import ctypes
import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

Weight = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Codec:
    """One of ggml's types: its number in `ggml_type`, weights and bytes of a block, what stands in for odd widths."""

    name: str
    number: int
    block: int
    bytes: int
    fallback: str = ""


CODECS = {
    c.name: c
    for c in (
        Codec("Q4_0", 2, 32, 18),
        Codec("Q5_0", 6, 32, 22),
        Codec("Q5_1", 7, 32, 24),
        Codec("Q8_0", 8, 32, 34),
        Codec("Q4_K", 12, 256, 144, "Q5_0"),
        Codec("Q5_K", 13, 256, 176, "Q5_1"),
        Codec("Q6_K", 14, 256, 210, "Q8_0"),
    )
}


@lru_cache(maxsize=None)
def _library() -> ctypes.CDLL:
    spec = importlib.util.find_spec("libggml")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install libggml-python first")
    library = ctypes.CDLL(str(next(Path(spec.origin).parent.glob("lib*/libggml-base.so"))))
    size, pointer, long = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.restype = size
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, long, long, long, pointer]
    return library


def codec_for(name: str, columns: int) -> Codec:
    """The codec that llama.cpp would take for rows of `columns` weights when asked for `name`."""
    codec = CODECS[name]
    if columns % codec.block == 0:
        return codec
    if not codec.fallback:
        raise ValueError(f"{name} needs rows of whole blocks of {codec.block}, not {columns}")
    return codec_for(codec.fallback, columns)


def quantize(weight: Weight, name: str, out: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
    """The bytes of a float32 (rows, columns) weight; written to `out` where given, so that it can be timed alone."""
    rows, columns = weight.shape
    codec = codec_for(name, columns)
    source = np.ascontiguousarray(weight, np.float32)
    if out is None:
        out = np.empty(weight.size // codec.block * codec.bytes, np.uint8)
    written = _library().ggml_quantize_chunk(codec.number, source.ctypes.data, out.ctypes.data, 0, rows, columns, None)
    if written != out.nbytes:
        raise RuntimeError(f"{codec.name} wrote {written} bytes, not {out.nbytes}")
    return out


def dequantize(data: npt.NDArray[np.uint8], name: str, shape: tuple[int, int]) -> Weight:
    """The float32 weight that `quantize(weight, name)` stands for."""
    function = getattr(_library(), f"dequantize_row_{codec_for(name, shape[1]).name.replace('Q', 'q')}")
    function.restype, function.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    decoded = np.empty(shape, np.float32)
    function(data.ctypes.data, decoded.ctypes.data, decoded.size)
    return decoded


def roundtrip(weight: Weight, name: str) -> tuple[Weight, float]:
    """The weight after coding and decoding, and the stored bits a weight."""
    data = quantize(weight, name)
    return dequantize(data, name, (weight.shape[0], weight.shape[1])), 8 * data.nbytes / weight.size


def main() -> None:
    weight = np.random.default_rng(0).standard_normal((512, 2048)).astype(np.float32)
    print("| codec | bits per weight | relative squared error, Gaussian |\n|---|---|---|")
    for name in CODECS:
        decoded, bits = roundtrip(weight, name)
        print(f"| {name} | {bits:.4g} | {np.square(decoded - weight).sum() / np.square(weight).sum():.3e} |")


if __name__ == "__main__":
    main()
