"""Speed of the encode and decode kernels on a CUDA device, compared with copying memory in the same run.

    python scripts/bench/codec_gpu.py [encode] [decode]

Each figure is the median of runs timed with CUDA events; the L2 cache is overwritten before each run. A kernel's GB/s
count each byte that goes in or out once. "of copy" is the fraction of the bandwidth of a device-to-device copy (bytes
read plus bytes written). Weights are random: the figures say something about speed, not about quality. The torch
reference, which defines the result, is timed on the first 16M weights.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from hlwq_cli.codec import Scheme
from hlwq_kernels import decode_rows, encode_rows
from hlwq_kernels.decode import decode_rows_reference
from hlwq_kernels.encode import encode_rows_reference

SHAPES = [(180224, 2816), (360448, 704), (8192, 2816), (4096, 2816)]
SCHEMES = {
    "5 bits, default": Scheme(5),
    "5 bits, fast": Scheme(5, search=False),
    "5 bits, classic": Scheme.classic(5),
    "4 bits, default": Scheme(4),
    "8 bits, default": Scheme(8),
}
REFERENCE_WEIGHTS = 2**24


@dataclass(frozen=True)
class Measurement:
    """One measured kernel.

    Attributes:
        name: the kernel and its settings.
        rows: rows of the weight.
        columns: columns of the weight.
        bytes_moved: bytes that go in and out.
        seconds: median time of the kernel.
        reference: seconds per weight of the torch reference.
    """

    name: str
    rows: int
    columns: int
    bytes_moved: int
    seconds: float
    reference: float


def median_seconds(run: Callable[[], object], runs: int) -> float:
    """Return the median seconds of `run` with a cold L2 cache, after two warm-up runs."""
    flush = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    times = []
    for i in range(runs + 2):
        flush.fill_(i)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times[2:])


def copy_bandwidth(runs: int) -> float:
    """Return the bytes read plus written per second by a copy of 2 GiB."""
    source = torch.empty(2**31, dtype=torch.uint8, device="cuda").fill_(1)
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_seconds(lambda: target.copy_(source), runs)


def random_weight(rows: int, columns: int) -> torch.Tensor:
    """Return random bfloat16 (rows, columns), made in parts to bound memory."""
    parts = [torch.randn(part, columns, device="cuda").bfloat16() * 0.02 for part in [8192] * (rows // 8192)]
    return torch.cat([*parts, torch.randn(rows % 8192, columns, device="cuda").bfloat16() * 0.02])


def encode_lines(runs: int) -> list[Measurement]:
    measurements = []
    for rows, columns in SHAPES:
        weight = random_weight(rows, columns)
        for name, scheme in SCHEMES.items():
            args = (scheme.tables, scheme.block_size, scheme.scale, scheme.search)
            part = weight[: REFERENCE_WEIGHTS // columns]
            seconds = median_seconds(lambda: encode_rows(weight, *args), runs)  # noqa: B023
            reference = median_seconds(lambda: encode_rows_reference(part, *args), 3) / part.numel()  # noqa: B023
            bytes_moved = weight.nbytes + rows * scheme.row_bytes(columns)
            measurements.append(Measurement(f"encode, {name}", rows, columns, bytes_moved, seconds, reference))
    return measurements


def decode_lines(runs: int) -> list[Measurement]:
    measurements = []
    for rows, columns in SHAPES:
        weight = random_weight(rows, columns)
        for bits in (4, 5, 8):
            scheme = Scheme(bits)
            centroids = torch.from_numpy(scheme.tables.centroids).cuda()
            coded = encode_rows(weight, scheme.tables, 64, "log8", search=False)
            stored = (coded.codes, coded.scales, coded.base)
            some = tuple(t[: REFERENCE_WEIGHTS // columns] for t in stored)
            seconds = median_seconds(lambda: decode_rows(*stored, centroids, 64, columns, torch.bfloat16), runs)  # noqa: B023
            reference = median_seconds(lambda: decode_rows_reference(*some, centroids, 64, columns), 3)  # noqa: B023
            bytes_moved = weight.nbytes + rows * scheme.row_bytes(columns)
            measurements.append(
                Measurement(
                    f"decode, {bits} bits to bf16",
                    rows,
                    columns,
                    bytes_moved,
                    seconds,
                    reference / (len(some[0]) * columns),
                )
            )
    return measurements


def table(measurements: list[Measurement], bandwidth: float) -> str:
    head = "| kernel | rows x columns | ms | GB/s of bf16 | GB/s in and out | of copy | times the torch reference |"
    rows = [head, "|---|---|---|---|---|---|---|"]
    for x in measurements:
        weights = x.rows * x.columns
        rows.append(
            f"| {x.name} | {x.rows} x {x.columns} | {x.seconds * 1e3:.3f} | {2 * weights / x.seconds / 1e9:.0f} "
            f"| {x.bytes_moved / x.seconds / 1e9:.0f} | {x.bytes_moved / x.seconds / bandwidth:.0%} "
            f"| {x.reference * weights / x.seconds:.1f} |"
        )
    return "\n".join(rows)


SECTIONS: dict[str, Callable[[int], list[Measurement]]] = {"encode": encode_lines, "decode": decode_lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "sections",
        nargs="*",
        metavar="SECTION",
        choices=[*SECTIONS, []],
        help=f"{', '.join(SECTIONS)}; default: all",
    )
    parser.add_argument("--runs", type=int, default=15)
    args = parser.parse_args()
    bandwidth = copy_bandwidth(args.runs)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, copy {bandwidth / 1e9:.0f} GB/s\n", flush=True)
    measurements = [line for name in args.sections or SECTIONS for line in SECTIONS[name](args.runs)]
    print(table(measurements, bandwidth))


if __name__ == "__main__":
    main()
