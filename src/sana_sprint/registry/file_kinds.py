"""Whether a file of a model is what its name says: safetensors, JSON, text, a picture, a tokenizer's vocabulary. None
of them runs anything when it is read; a pickle does, whatever it is called.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sana_sprint.registry import store

if TYPE_CHECKING:
    from pathlib import Path

WEIGHTS = ".safetensors"
TEXT_MAX_MB = 256  # read as a whole; a tokenizer.json of Gemma's has 34
TEXT = (".jsonl", ".txt", ".md", ".yaml", ".yml", ".jinja")
NAMED = ("MLmodel", "registered_model_meta", "LICENSE", "NOTICE", ".gitattributes")  # text without an ending
FIRST_BYTES = {
    ".png": (b"\x89PNG\r\n\x1a\n",),
    ".jpg": (b"\xff\xd8\xff",),
    ".webp": (b"RIFF",),
    ".model": (b"\n",),  # sentencepiece: a protobuf, whose first field is the list of pieces
}
SHARDS = "weight_map"  # of a *.index.json: {tensor: file}


def fault(path: Path) -> str | None:
    """Returns why a file is no file of a model, or not what its name says, or None."""
    if path.suffix == WEIGHTS:
        return _no_safetensors(path)
    if path.suffix in FIRST_BYTES:
        with path.open("rb") as file:
            known = file.read(8).startswith(FIRST_BYTES[path.suffix])
        return None if known else f"no {path.suffix} file, by its first bytes"
    if path.suffix == ".json":
        return _no_json(path)
    if path.suffix in TEXT or path.name in NAMED:
        return _no_text(path)
    return "no kind of file that a model of this project has"


def _no_safetensors(path: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            return None
    except (SafetensorError, OSError) as error:
        return f"no safetensors ({store.one_line(error):.100})"


def _no_text(path: Path) -> str | None:
    size_mb = path.stat().st_size / 10**6
    if size_mb > TEXT_MAX_MB:
        return f"{size_mb:.0f} MB of text, over {TEXT_MAX_MB}"
    try:
        return "no text: it holds zero bytes" if "\0" in path.read_text(encoding="utf-8") else None
    except UnicodeDecodeError:
        return "no text in UTF-8"


def _no_json(path: Path) -> str | None:
    if no_text := _no_text(path):
        return no_text
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return "no JSON"
    return _wrong_shard(path, content)


def _wrong_shard(path: Path, content: Any) -> str | None:
    """Returns which file of an index of shards is none of its own folder, or None. What loads the shards joins the
    names to the folder as they are."""
    if not isinstance(content, dict) or SHARDS not in content:
        return None
    shards = content[SHARDS]
    if not isinstance(shards, dict):
        return f"its {SHARDS} is no list of tensors and files"
    for name in shards.values():
        if not isinstance(name, str) or any(mark in name for mark in "/\\\0") or not (path.parent / name).is_file():
            return f"its {SHARDS} names {name!r:.100}, which is no file beside it"
    return None
