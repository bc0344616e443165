"""Mutations of JSON documents, bytes and folders that know their structure, from a random generator alone."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import socket
import struct
from pathlib import Path
from typing import Any

NUMBERS: tuple[Any, ...] = (
    0, -1, 1, 2, 7, 63, 255, 256, 2**15, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, 10**400, 0.5,
    -0.0, 1e308, 5e-324, float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
TEXTS = (
    "", " ", "a", "../x", "/etc/passwd", "..", ".", "a/../../b", "a\x00b", "\x1b[31mred\x1b[0m", "\r\n", "\u202e",
    "\ud800", "é" * 300, "x" * 5000, "null", "NaN", "-1", "1e999", "model.safetensors", "{0.__class__}",
    "%s%n", "torch.load", "\ufeff",
)  # fmt: skip
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], [None], {"": None}, [1, "a", None], {"a": {"a": {}}})
RAW_NUMBERS = (b"1e999", b"-0", b"1" * 5000, b"0.1e-400", b"NaN", b"Infinity", b"1_000", b"0x10", b"01", b"+1")
DEPTH = 20_000


def random_value(rng: random.Random) -> Any:
    """Return a value that readers may not expect."""
    return copy.deepcopy(rng.choice(rng.choice((NUMBERS, TEXTS, OTHERS))))


def _text(value: Any) -> str:
    return str(value) if not isinstance(value, int) or abs(value) < 10**300 else "1e400"


def mutate_document(rng: random.Random, document: Any) -> Any:
    """Return a copy of a JSON document with one to three of its parts changed."""
    changed = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        parent, key = _place(rng, changed)
        if parent is None:
            return random_value(rng)
        _change(rng, changed, parent, key)
    return changed


def _place(rng: random.Random, document: Any) -> tuple[Any, Any]:
    """Return a container in a document and one of its keys; (None, None) if it holds nothing."""
    parent, key, value = None, None, document
    while isinstance(value, dict | list) and value:
        parent = value
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        value = parent[key]
        if rng.random() < 0.25:
            break
    return parent, key


def _change(rng: random.Random, document: Any, parent: Any, key: Any) -> None:
    action = rng.randrange(8)
    if action <= 2:
        parent[key] = random_value(rng)
    elif action == 3:
        del parent[key]
    elif action == 4:  # a part of another place
        other, its_key = _place(rng, document)
        parent[key] = copy.deepcopy(other[its_key]) if other is not None else None
    elif action == 5 and isinstance(parent, dict):
        new = rng.choice(
            (str(random_value(rng)), str(key) + rng.choice(("x", " ", "\x00", ".weight")), str(key).upper())
        )
        parent[new] = parent.pop(key)
    elif action == 6:
        parent[key] = [parent[key]] * rng.choice((1, 2, 1000)) if not isinstance(parent[key], dict) else [parent[key]]
    else:
        parent[key] = _near(rng, parent[key])


def _near(rng: random.Random, value: Any) -> Any:
    """Return a value that is almost the given one."""
    if isinstance(value, bool) or value is None:
        return rng.choice((True, False, None, 0, 1))
    if isinstance(value, int):
        if abs(value) >= 2**64:
            return -value
        return rng.choice((value + 1, value - 1, -value, value * 2, float(value), str(value), [value], value << 32))
    if isinstance(value, float):
        return rng.choice((-value, value * 1e300, int(value) if abs(value) < 1e9 else 0, str(value)))
    if isinstance(value, str):
        at = rng.randrange(len(value) + 1)
        return rng.choice(
            (value[:at], value + value, value[:at] + rng.choice(TEXTS) + value[at:], [value], value.upper())
        )
    return random_value(rng)


def dump(rng: random.Random, document: Any) -> bytes:
    """Return a document as JSON, at times with a fault that only its text can have."""
    text = json.dumps(document).encode("utf-8", "surrogatepass")
    return mutate_text(rng, text) if rng.random() < 0.25 else text


def mutate_text(rng: random.Random, text: bytes) -> bytes:
    """Return text of JSON or YAML with one fault."""
    at = rng.randrange(len(text) + 1)
    action = rng.randrange(10)
    if action == 0:
        return text[:at]
    if action == 1:
        return text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :]
    if action == 2:
        return text[:at] + rng.choice((b"\xff\xfe", b"\xc3", b"\x00", b"\xed\xa0\x80", b"\xef\xbb\xbf")) + text[at:]
    if action == 3:
        return text + rng.choice((b" ", b"\n{}", b"]", text, b"\x00" * 100))
    if action == 4:
        opening = rng.choice((b"[", b'{"a":'))
        return text[:at] + opening * DEPTH + text[at:]
    if action == 5 and b'":' in text:  # a name twice
        first = text.index(b'"')
        return (
            text[:first] + text[first : text.index(b":", first)] + b":" + rng.choice(RAW_NUMBERS) + b"," + text[first:]
        )
    if action == 6:
        digits = [i for i, byte in enumerate(text) if 48 <= byte <= 57]
        if digits:
            place = rng.choice(digits)
            return text[:place] + rng.choice(RAW_NUMBERS) + text[place + 1 :]
    if action == 7:
        return text.replace(rng.choice((b"{", b"[", b":", b'"', b",")), rng.choice((b"", b"{", b"'", b"\n")), 1)
    if action == 8:
        return b""
    return text[:at] + text[rng.randrange(len(text) + 1) :]


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Return bytes with a few flipped, or a part missing, added or moved."""
    if not data:
        return b"\x00"
    at = rng.randrange(len(data))
    action = rng.randrange(5)
    if action <= 1:
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 4, 64))):
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(changed)
    if action == 2:
        return data[:at]
    if action == 3:
        return data + data[at:]
    return data[:at] + bytes(rng.choice((1, 8, 64))) + data[at:]


def mutate_safetensors(rng: random.Random, data: bytes) -> bytes:
    """Return a safetensors file with a fault in its length, header or data."""
    (length,) = struct.unpack("<Q", data[:8])
    header, body = data[8 : 8 + length], data[8 + length :]
    part = rng.randrange(8)
    if part == 0:
        length = rng.choice((0, 1, 8, length - 1, length + 1, length + len(body), 2**31, 2**63, 2**64 - 1, 10**8))
        return struct.pack("<Q", length) + header + body
    if part == 1:
        return mutate_bytes(rng, data)
    if part == 2:
        return data[:8] + header + mutate_bytes(rng, body)
    new = dump(rng, mutate_document(rng, json.loads(header)))
    return struct.pack("<Q", len(new)) + new + body


def mutate_folder(rng: random.Random, folder: Path, secret: Path) -> None:
    """Replace, add or change a file of a folder: links, pipes, sockets, folders, permissions, sparse files."""
    path = rng.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
    action = rng.randrange(9)
    if action == 8:
        path.chmod(0o000)
        return
    if action == 7:
        with path.open("r+b") as file:
            file.truncate(rng.choice((0, 1, 10**6, 10**7)))
        return
    if rng.random() < 0.3:  # beside it, under a name that a reader may look for
        path = folder / rng.choice(
            ("model.safetensors", "adapter_model.safetensors", "tokenizer.json", ".README.md.partial")
        )
    if path.is_symlink() or path.exists():
        path.unlink()
    if action == 0:
        path.symlink_to(secret)
    elif action == 1:
        path.symlink_to(path.name)
    elif action == 2:
        path.symlink_to(rng.choice(("/dev/zero", "/dev/null", "missing", "..", "/proc/self/mem")))
    elif action == 3:
        os.mkfifo(path)
    elif action == 4:
        _make_socket(path)
    elif action == 5:
        path.mkdir()
    elif rng.random() < 0.5:
        shutil.copy(secret, path)


def _make_socket(path: Path) -> None:
    """Create a socket by a name in the current folder, as its whole path may be too long for one."""
    here = os.open(".", os.O_RDONLY)
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name[:90])
    finally:
        os.fchdir(here)
        os.close(here)
