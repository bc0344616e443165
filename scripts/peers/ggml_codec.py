"""ggml's weight codecs through ctypes: the functions that llama.cpp quantizes with.

    pip install -e '.[peers]'
    python scripts/peers/ggml_codec.py

K-quants need rows of whole 256-weight blocks. For other rows, llama.cpp falls back to a codec with blocks of 32: Q4_K
to Q5_0, Q5_K to Q5_1, Q6_K to Q8_0; so does this module. As a program, it prints each codec's error on Gaussian
weights.
"""

import argparse
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
    """One of ggml's types.

    Attributes:
        name: ggml's name.
        number: value in the enum `ggml_type`.
        block: weights per block.
        bytes: bytes per block.
        fallback: codec for rows that are not whole blocks; empty if there is none.
    """

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
        Codec("IQ4_NL", 20, 32, 18),
    )
}


@lru_cache(maxsize=None)
def _library() -> ctypes.CDLL:
    spec = importlib.util.find_spec("libggml")
    if spec is None or spec.origin is None:
        raise SystemExit("Run `pip install libggml-python` first.")
    library = ctypes.CDLL(str(next(Path(spec.origin).parent.glob("lib*/libggml-base.so"))))
    size, pointer, long = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.restype = size
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, long, long, long, pointer]
    return library


def codec_for(name: str, columns: int) -> Codec:
    """Return the codec that llama.cpp uses for rows of `columns` weights when asked for `name`."""
    codec = CODECS[name]
    if columns % codec.block == 0:
        return codec
    if not codec.fallback:
        raise ValueError(f"{name} needs rows of whole blocks of {codec.block}, not {columns}")
    return codec_for(codec.fallback, columns)


def quantize(
    weight: Weight, name: str, out: npt.NDArray[np.uint8] | None = None, importance: Weight | None = None
) -> npt.NDArray[np.uint8]:
    """Encode a float32 (rows, columns) weight into bytes.

    `out`, if given, receives them, to time encoding alone. `importance` weighs the errors of columns: an entry of an
    imatrix, float32 (columns,), the mean squared inputs.
    """
    rows, columns = weight.shape
    codec = codec_for(name, columns)
    source = np.ascontiguousarray(weight, np.float32)
    if out is None:
        out = np.empty(weight.size // codec.block * codec.bytes, np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    pointer = None if weights is None else weights.ctypes.data
    written = _library().ggml_quantize_chunk(
        codec.number, source.ctypes.data, out.ctypes.data, 0, rows, columns, pointer
    )
    if written != out.nbytes:
        raise RuntimeError(f"{codec.name} wrote {written} bytes, not {out.nbytes}")
    return out


def dequantize(data: npt.NDArray[np.uint8], name: str, shape: tuple[int, int]) -> Weight:
    """Decode the bytes of `quantize(weight, name)` to float32."""
    function = getattr(_library(), f"dequantize_row_{_c_name(codec_for(name, shape[1]).name)}")
    function.restype, function.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    decoded = np.empty(shape, np.float32)
    function(data.ctypes.data, decoded.ctypes.data, decoded.size)
    return decoded


def _c_name(name: str) -> str:
    """Return a codec's name in the library's functions, such as q4_K or iq4_nl."""
    return name.lower() if name.startswith("IQ") else name.replace("Q", "q")


def roundtrip(weight: Weight, name: str, importance: Weight | None = None) -> tuple[Weight, float]:
    """Return the weight after encoding and decoding, and the stored bits per weight; see `quantize`."""
    data = quantize(weight, name, importance=importance)
    return dequantize(data, name, (weight.shape[0], weight.shape[1])), 8 * data.nbytes / weight.size


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    weight = np.random.default_rng(0).standard_normal((512, 2048)).astype(np.float32)
    print("| codec | bits per weight | relative squared error, Gaussian |\n|---|---|---|")
    for name in CODECS:
        decoded, bits = roundtrip(weight, name)
        print(f"| {name} | {bits:.4g} | {np.square(decoded - weight).sum() / np.square(weight).sum():.3e} |")


if __name__ == "__main__":
    main()
