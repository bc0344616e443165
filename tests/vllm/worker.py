"""Run several checkpoints in vLLM, in one process: `python -m tests.vllm.worker OUT.json JOBS`.

JOBS is a JSON list of objects: `model`, and optionally `options` of `vllm.LLM`, `hlwq` (options of the plugin),
`prompts` (lists of token ids) and `tokens` to generate. OUT gets a list of objects: greedy tokens, their log
probabilities, and the classes of the modules; or the error.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

PROMPTS = [[2, 5, 9, 100, 33, 44], [2, *range(20, 60)], [2, 300, 301]]
OPTIONS: dict[str, Any] = {
    "dtype": "float32", "max_model_len": 128, "max_num_seqs": 4, "max_num_batched_tokens": 128, "seed": 0,
    "skip_tokenizer_init": True, "distributed_executor_backend": "uni", "disable_log_stats": True,
}  # fmt: skip


def classes(llm: Any) -> dict[str, int]:
    """Count the classes of the model's modules and of what runs them; empty where other processes hold it."""

    def count(model: Any) -> dict[str, int]:
        methods = (getattr(m, "quant_method", None) for m in model.modules())
        return dict(Counter(type(m).__name__ for m in (*model.modules(), *methods)))

    found = llm.apply_model(count) if OPTIONS["distributed_executor_backend"] == "uni" else [{}]
    return dict(found[0])


def run(job: dict[str, Any]) -> dict[str, Any]:
    from vllm import LLM, SamplingParams

    options = OPTIONS | job.get("options", {})
    if "hlwq" in job:
        options["additional_config"] = {"hlwq": job["hlwq"]}
    llm = LLM(model=job["model"], **options)
    prompts = [p if isinstance(p, dict) else {"prompt_token_ids": p} for p in job.get("prompts", PROMPTS)]
    sampling = SamplingParams(
        temperature=0, max_tokens=job.get("tokens", 24), ignore_eos=True, logprobs=0, detokenize=False
    )
    answers = [a.outputs[0] for a in llm.generate(prompts, sampling, use_tqdm=False)]
    return {
        "tokens": [list(a.token_ids) for a in answers],
        "logprobs": [[next(iter(step.values())).logprob for step in a.logprobs] for a in answers],
        "classes": classes(llm) if options["distributed_executor_backend"] == "uni" else {},
    }


def main() -> None:
    out, jobs = sys.argv[1:]
    results: list[dict[str, Any]] = []
    for job in json.loads(jobs):
        try:
            results.append(run(job))
        except Exception as error:
            results.append({"error": f"{type(error).__name__}: {error}"})
        Path(out).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
