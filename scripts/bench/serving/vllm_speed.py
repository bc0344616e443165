"""Measure what vLLM makes of checkpoints: tokens a second of decoding and of prompts, by mode and number of sequences.

    python scripts/bench/serving/vllm_speed.py MODEL.. [--modes default no-compile] [--sequences 1 8] [--profile 1]

Each model and mode gets a process of its own, with vLLM's engine in it. Decoding: the time of 1 + TOKENS new tokens
less that of 1, after prompts of 16, for all sequences together. Prompts: LENGTH tokens and 1 new one each. Medians of
some repeats. Modes: `default` compiles and captures CUDA graphs; `no-compile` only captures graphs of decode steps;
`eager` does neither. `--profile` lists the kernels of decoding with that many sequences, by their time per step.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

MODES: dict[str, dict[str, Any]] = {
    "default": {"compilation_config": {}},
    "no-compile": {"compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}},
    "eager": {"enforce_eager": True},
}
PROMPT = 16
ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_USE_FLASHINFER_SAMPLER": "0", "HF_HUB_OFFLINE": "1"}


def engine(model: str, mode: str, args: argparse.Namespace) -> Any:
    """Return a vLLM engine in this process."""
    from vllm import LLM

    options: dict[str, Any] = {
        "dtype": "bfloat16", "max_num_seqs": max(args.sequences), "max_model_len": 4096, "seed": 0,
        "max_num_batched_tokens": 16384, "enable_prefix_caching": False, "skip_tokenizer_init": True,
        "disable_log_stats": True, "gpu_memory_utilization": args.memory, **MODES[mode],
    }  # fmt: skip
    if "compilation_config" in options:
        options["compilation_config"] = options["compilation_config"] | {"cudagraph_capture_sizes": args.sequences}
    if args.attention_backend:
        options["attention_backend"] = args.attention_backend
    if args.architecture:
        options["hf_overrides"] = {"architectures": [args.architecture]}
    return LLM(model=model, **(options | json.loads(args.engine)))


def seconds(llm: Any, count: int, length: int, new: int) -> float:
    """Return the time of `new` greedy tokens after `count` prompts of `length` random tokens."""
    import torch
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": torch.randint(100, 2000, (length,)).tolist()} for _ in range(count)]
    sampling = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
    start = time.perf_counter()
    llm.generate(prompts, sampling, use_tqdm=False)
    return time.perf_counter() - start


def rate(runs: list[float], tokens: int) -> dict[str, float]:
    median = statistics.median(runs)
    return {"tokens_per_second": tokens / median, "spread": (max(runs) - min(runs)) / median}


def decode_rate(llm: Any, count: int, tokens: int, repeats: int) -> dict[str, float]:
    seconds(llm, count, PROMPT, 8)
    pairs = [(seconds(llm, count, PROMPT, 1 + tokens), seconds(llm, count, PROMPT, 1)) for _ in range(repeats)]
    return rate([long - short for long, short in pairs], count * tokens)


def prompt_rate(llm: Any, count: int, length: int, repeats: int) -> dict[str, float]:
    seconds(llm, count, length, 1)
    return rate([seconds(llm, count, length, 1) for _ in range(repeats)], count * length)


def profile(llm: Any, count: int, tokens: int = 32) -> list[dict[str, Any]]:
    """Return the kernels of decode steps, those with the most time first: launches and microseconds per step."""
    import torch
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity

    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as found:
        seconds(llm, count, PROMPT, tokens)
        torch.cuda.synchronize()
    times: dict[str, list[float]] = defaultdict(list)
    for event in found.events():
        if event.device_type == DeviceType.CUDA:
            times[event.name].append(event.device_time)
    rows = [{"kernel": n, "launches": len(t) / tokens, "us": sum(t) / tokens} for n, t in times.items()]
    return sorted(rows, key=lambda row: -row["us"])


def measure(model: str, mode: str, args: argparse.Namespace, out: Path) -> None:
    """Measure one model in one mode, in this process; `out` is written after each step."""
    import torch

    start = time.perf_counter()
    llm = engine(model, mode, args)
    result: dict[str, Any] = {"model": model, "mode": mode, "start_seconds": time.perf_counter() - start}
    if torch.cuda.is_available():
        result["memory"] = torch.cuda.memory_allocated()
    result |= {"decode": {}, "prompts": {}, "kernels": {}}
    for count in args.sequences:
        result["decode"][str(count)] = decode_rate(llm, count, args.tokens, args.repeats)
        out.write_text(json.dumps(result))
    for count in args.profile:
        result["kernels"][str(count)] = profile(llm, count)
        out.write_text(json.dumps(result))
    for spec in args.prompts:
        count, length = (int(part) for part in spec.split("x"))
        result["prompts"][spec] = prompt_rate(llm, count, length, args.repeats)
        out.write_text(json.dumps(result))


def in_own_process(model: str, mode: str, argv: list[str], seconds: float) -> dict[str, Any]:
    """Measure one model in one mode, in a process of its own; what it has found when it fails or is ended counts."""
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder) / "result.json", Path(folder) / "log"
        out.write_text(json.dumps({"model": model, "mode": mode}))
        with log.open("w") as file:
            worker = subprocess.Popen(
                [sys.executable, __file__, *argv, "--worker", mode, str(out), model],
                env=os.environ | ENVIRONMENT,
                stdout=file,
                stderr=file,
            )
            try:
                error = "" if worker.wait(seconds) == 0 else "failed"
            except subprocess.TimeoutExpired:
                worker.kill()
                error = f"ended after {seconds:.0f} s"
        found: dict[str, Any] = json.loads(out.read_text())
        if error:
            sys.stderr.write(log.read_text()[-6000:])
            found["error"] = error
        return found


def print_table(results: list[dict[str, Any]], args: argparse.Namespace) -> None:
    names = [f"{Path(r['model']).name}, {r['mode']}" for r in results]
    print("| tokens/s | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    rows = [("decode", str(n)) for n in args.sequences] + [("prompts", spec) for spec in args.prompts]
    for kind, key in rows:
        cells = [r.get(kind, {}).get(key) for r in results]
        shown = ["failed" if c is None else f"{c['tokens_per_second']:,.0f} ({c['spread']:.0%})" for c in cells]
        print(f"| {kind} {key} | " + " | ".join(shown) + " |")
    for r in results:
        for count, kernels in r.get("kernels", {}).items():
            total, launches = (sum(k[what] for k in kernels) for what in ("us", "launches"))
            print(f"\n{Path(r['model']).name}, {r['mode']}, {count} sequences: {total:.0f} us, {launches:.0f} launches")
            for k in kernels[: args.rows]:
                print(f"  {k['us']:8.1f} us {k['launches']:7.1f} x  {k['kernel'][:100]}")
        if "error" in r:
            print(f"{r['model']}, {r['mode']}: {r['error']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["default"])
    parser.add_argument("--sequences", nargs="+", type=int, default=[1, 8, 32, 64])
    parser.add_argument("--prompts", nargs="*", default=["1x512", "1x2048", "8x2048"], metavar="COUNTxLENGTH")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", nargs="*", type=int, default=[], metavar="SEQUENCES")
    parser.add_argument("--rows", type=int, default=24, help="kernels to list (default: 24)")
    parser.add_argument("--memory", type=float, default=0.9, help="share of GPU memory for vLLM (default: 0.9)")
    parser.add_argument("--limit", type=float, default=900, help="seconds for each model and mode (default: 900)")
    parser.add_argument("--architecture", help="such as Gemma4ForCausalLM, to leave the towers out")
    parser.add_argument("--attention-backend", help="such as TRITON_ATTN (default: vLLM's choice)")
    parser.add_argument("--engine", default="{}", help="more options of vLLM's engine, as JSON")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--worker", nargs=3, metavar=("MODE", "OUT", "MODEL"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        mode, out, model = args.worker
        measure(model, mode, args, Path(out))
        return
    results = []
    for model in args.models:
        for mode in args.modes:
            results.append(in_own_process(model, mode, sys.argv[1:], args.limit))
            print(f"{model}, {mode}: started in {results[-1].get('start_seconds', 0):.0f} s", file=sys.stderr)
            if args.json:
                args.json.write_text(json.dumps(results, indent=1))
    print_table(results, args)


if __name__ == "__main__":
    main()
