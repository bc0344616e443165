"""The tables that scripts/bench/offload.py prints."""

from scripts.bench.offloading.offload_case import ROUTINGS, Figures
from scripts.bench.time_by_cause import cause_rows


def show(results: list[Figures]) -> None:
    """Print the tables in Markdown."""
    print("\n| case | slots | routing | tok/s | hit rate | MB per token | MB prefetched | copy bound tok/s | decoded |")
    print("|---|---|---|---|---|---|---|---|---|")
    for r in results:
        for routing in ROUTINGS:
            if f := r.get(routing):
                cells = [
                    r["case"],
                    r.get("slots", "all"),
                    routing,
                    f"{f['tokens_a_second']:.1f} ± {f['deviation']:.1f}",
                ]
                if "hit_rate" in f:
                    bound = f"{f['copy_bound']:.0f}" if f["copy_bound"] else ""
                    cells += [f"{f['hit_rate']:.3f}", f"{f['token_bytes'] / 1e6:.1f}", f"{f['ahead_bytes'] / 1e6:.1f}"]
                    cells.append(bound)
                else:
                    cells += [""] * 4
                print("| " + " | ".join(str(c) for c in [*cells, f["decoding"]]) + " |")
    print("\n| case | prefill 512 tok/s | device GB by the driver | host peak GB (RSS) | host GB taken | load s |")
    print("|---|---|---|---|---|---|")
    for r in results:
        driver = r.get("device_bytes_by_driver") or r.get("device_bytes_used") or 0
        cells = [f"{r.get('prefill_tokens_a_second', 0):.0f}"]
        cells += [f"{b / 1e9:.2f}" for b in (driver, r.get("host_peak_rss", 0), r.get("host_memory_taken", 0))]
        print("| " + " | ".join([r["case"], *cells, f"{r.get('load_seconds', 0):.1f}"]) + " |")
    for r in results:
        print(f"\n{r['case']}: {r.get('placed', '')} {r.get('failed', '')}")
        for routing in ROUTINGS[1:]:
            if isinstance(times := r.get(f"{routing}_profile"), dict):
                print(f"{routing}, us per token: " + ", ".join(f"{name} {us:.0f}" for name, us in times.items()))


def show_causes(results: list[Figures], device_rate: float) -> None:
    """Print a layer's time by cause, and the time to copy its bytes at the measured rates."""
    print("\n| case | routing | cause | us per layer | copy bound us |\n|---|---|---|---|---|")
    for r in results:
        for routing in ROUTINGS[1:]:
            if causes := r.get(f"{routing}_causes"):
                least = {cause: size / device_rate for cause, size in r["bytes_read"].items()}
                if rate := r[routing].get("copy_rate"):
                    least["fetch"] = r[routing]["token_bytes"] / rate
                    least["prefetch (side stream)"] = r[routing]["ahead_bytes"] / rate
                for row in cause_rows(causes, least, r["layers"]):
                    print(f"| {r['case']} | {routing} | {row} |")
                whole = 1e6 / r[routing]["tokens_a_second"] / r["layers"]
                print(f"| {r['case']} | {routing} | total, by the clock | {whole:.1f} | |")
