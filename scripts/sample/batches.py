"""Training data of the bundled sample as tensors: windows of addresses, pictures with captions. Used by train.py."""

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from scripts.sample.model import SOFT_TOKENS, to_patches
from scripts.sample.pictures import draw_set
from scripts.sample.text import BOS, END_OF_TURN, SPECIAL, TURN, encode_stream, read_addresses

QUESTION = "What is in the picture?"
CAPTION_ROOM = 40
PAD_ID, BOS_ID, IMAGE_ID = SPECIAL.index("<pad>"), SPECIAL.index(BOS), SPECIAL.index("<|image|>")


@dataclass(frozen=True)
class TextRows:
    """Random windows of the addresses (one row in eight: of dialogues made from them), each starting with BOS."""

    streams: list[Tensor]
    dialogues: Tensor
    context: int

    def sample(self, rows: int, generator: torch.Generator) -> Tensor:
        """Return token ids (rows, context)."""
        picks = torch.randint(len(self.streams), (rows,), generator=generator).tolist()
        return torch.stack([self._row(self.streams[pick], generator) for pick in picks])

    def _row(self, stream: Tensor, generator: torch.Generator) -> Tensor:
        stream = self.dialogues if torch.rand((), generator=generator) < 1 / 8 else stream
        start = int(torch.randint(len(stream) - self.context, (), generator=generator))
        row = stream[start : start + self.context].clone()
        row[0] = BOS_ID
        return row


def text_rows(tokenizer: Tokenizer, corpus: Path, context: int, subword_dropout: float) -> TextRows:
    """Return the training text: half of the rows with the final merges, half with merges dropped at random."""
    addresses = read_addresses(corpus, 1790, 1980)
    streams = [encode_stream(tokenizer, addresses)]
    dialogues = encode_stream(tokenizer, addresses, dialogue=True)
    if subword_dropout:
        tokenizer.model.dropout = subword_dropout
        streams = streams * 3 + [encode_stream(tokenizer, addresses) for _ in range(3)]
        tokenizer.model.dropout = None
    return TextRows([torch.tensor(stream) for stream in streams], torch.tensor(dialogues), context)


def windows(stream: list[int], context: int, count: int) -> Tensor:
    """Return evenly spaced windows of a stream, each starting with BOS: (count, context)."""
    starts = torch.linspace(0, len(stream) - context, count).long().tolist()
    rows = torch.tensor([stream[start : start + context] for start in starts])
    rows[:, 0] = BOS_ID
    return rows


@dataclass(frozen=True)
class PictureRows:
    """Pictures on the device, captions as ids (count, CAPTION_ROOM), the prompt (P,) and the start of its image."""

    pixels: Tensor
    captions: Tensor
    prompt: Tensor
    start: int

    def sample(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return patches (rows, 256, 192), slightly shifted and noisy, and captions (rows, CAPTION_ROOM)."""
        pick = torch.randint(len(self.pixels), (rows,), generator=generator).to(self.pixels.device)
        dx, dy = torch.randint(-3, 4, (2,), generator=generator).tolist()
        patches = to_patches(self.pixels[pick].roll((dy, dx), (1, 2)))
        return patches + 0.01 * torch.randn_like(patches), self.captions[pick]


def picture_prompt(tokenizer: Tokenizer) -> list[int]:
    """Return the chat template's prompt for a picture and the question, as ids."""
    image = "<|image>" + "<|image|>" * SOFT_TOKENS + "<image|>"
    text = f"{BOS}{TURN}user\n{image}{QUESTION}{END_OF_TURN}\n{TURN}model\n"
    return tokenizer.encode(text, add_special_tokens=False).ids


def _encode_captions(tokenizer: Tokenizer, captions: list[str]) -> Tensor:
    lines = tokenizer.encode_batch([text + END_OF_TURN for text in captions], add_special_tokens=False)
    return torch.tensor([line.ids + [PAD_ID] * (CAPTION_ROOM - len(line.ids)) for line in lines])


def picture_rows(tokenizer: Tokenizer, count: int, device: torch.device) -> PictureRows:
    """Draw the pictures of seeds 0 to count-1 and put them on the device."""
    pixels, captions = draw_set(count)
    prompt = picture_prompt(tokenizer)
    captions_ids = _encode_captions(tokenizer, captions).to(device)
    on_device = torch.from_numpy(pixels).to(device)
    return PictureRows(on_device, captions_ids, torch.tensor(prompt, device=device), prompt.index(IMAGE_ID))
