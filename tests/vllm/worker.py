"""Run several checkpoints in vLLM, in one process: `python -m tests.vllm.worker OUT.json JOBS`.

JOBS is a JSON list of objects: `model`, and optionally `options` of `vllm.LLM`, `hlwq` (options of the plugin),
`prompts` (lists of token ids, or texts with pictures), `tokens` to generate, `adapter` (a folder) and `twice`. OUT
gets a list of objects: greedy tokens, their log probabilities, cached tokens of prompts, and the number of modules of
each class; or the error.
"""

import json
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

PROMPTS = [[2, 5, 9, 100, 33, 44], [2, *range(20, 60)], [2, 300, 301]]
OPTIONS: dict[str, Any] = {
    "dtype": "float32", "max_model_len": 128, "max_num_seqs": 4, "max_num_batched_tokens": 128, "seed": 0,
    "skip_tokenizer_init": True, "distributed_executor_backend": "uni", "disable_log_stats": True,
    "num_gpu_blocks_override": 32,  # a small cache: the engines of one process do not give theirs back
}  # fmt: skip
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",  # an engine starts in 9 s instead of 148 s
}  # fmt: skip


def count_classes(model: Any) -> dict[str, int]:
    methods = (getattr(module, "quant_method", None) for module in model.modules())
    return dict(Counter(type(module).__name__ for module in (*model.modules(), *methods)))


def prompt_of(given: Any) -> dict[str, Any]:
    """Return vLLM's form of a prompt: token ids, or a text with a picture."""
    if isinstance(given, list):
        return {"prompt_token_ids": given}
    from PIL import Image

    return {"prompt": given["text"], "multi_modal_data": {"image": Image.open(given["picture"]).convert("RGB")}}


def run(job: dict[str, Any]) -> dict[str, Any]:
    from vllm import LLM, SamplingParams

    options = OPTIONS | job.get("options", {})
    if "hlwq" in job:
        options["additional_config"] = {"hlwq": job["hlwq"]}
    lora = None
    if "adapter" in job:
        from vllm.lora.request import LoRARequest

        options |= {"enable_lora": True, "max_lora_rank": 8}
        lora = LoRARequest("adapter", 1, job["adapter"])
    llm = LLM(model=job["model"], **options)
    sampling = SamplingParams(
        temperature=0, max_tokens=job.get("tokens", 24), ignore_eos=True, logprobs=0, detokenize=False
    )
    prompts = [prompt_of(p) for p in job.get("prompts", PROMPTS)]
    for _ in range(2 if job.get("twice") else 1):
        found = llm.generate(prompts, sampling, use_tqdm=False, lora_request=lora)
    answers = [answer.outputs[0] for answer in found]
    return {
        "tokens": [list(answer.token_ids) for answer in answers],
        "logprobs": [[next(iter(step.values())).logprob for step in answer.logprobs] for answer in answers],
        "cached": sum(answer.num_cached_tokens or 0 for answer in found),
        "classes": llm.apply_model(count_classes)[0] if options["distributed_executor_backend"] == "uni" else {},
    }


def run_jobs(jobs: list[dict[str, Any]], **environment: str) -> list[dict[str, Any]]:
    """Run jobs in a process of its own, which prints what vLLM says."""
    import subprocess

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [sys.executable, "-m", "tests.vllm.worker", str(out), json.dumps(jobs)]
        done = subprocess.run(command, env=os.environ | ENVIRONMENT | environment, check=False)
        assert done.returncode == 0
        results: list[dict[str, Any]] = json.loads(out.read_text())
        return results


def causes(error: BaseException | None) -> str:
    """Return an error and those behind it."""
    lines = []
    while error is not None:
        lines.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return "\n".join(lines)


def main() -> None:
    out, jobs = sys.argv[1:]
    results: list[dict[str, Any]] = []
    for job in json.loads(jobs):
        try:
            results.append(run(job))
        except Exception as error:
            results.append({"error": causes(error)})
        Path(out).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
