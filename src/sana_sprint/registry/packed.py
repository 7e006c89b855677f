"""Text in the tags of a model version, cut where it is longer than every server takes in one tag."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

PART_LENGTH_MAX = 4900  # servers before MLflow 3 took 5,000 characters


def text(content: Any) -> str:
    """Returns content as the one JSON that its digest is taken of: sorted keys, no spaces, ASCII."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def cut(key: str, whole: str) -> dict[str, str]:
    """Returns a text as the tags `key`, `key.1`, `key.2`, ..., as few as hold it."""
    starts = range(0, max(len(whole), 1), PART_LENGTH_MAX)
    return {
        key if number == 0 else f"{key}.{number}": whole[start : start + PART_LENGTH_MAX]
        for number, start in enumerate(starts)
    }


def joined(tags: Mapping[str, str], key: str) -> str | None:
    """Returns the text that `cut` put into tags, or None where there is none."""
    parts = [tags[key]] if key in tags else []
    while parts and (following := tags.get(f"{key}.{len(parts)}")) is not None:
        parts.append(following)
    return "".join(parts) if parts else None


def pack(key: str, content: Any) -> dict[str, str]:
    """Returns the tags that hold content as JSON."""
    return cut(key, text(content))


def unpack(tags: Mapping[str, str], key: str) -> Any:
    """Returns the content of tags, or None where there is none or it is no JSON. What a longer text left behind in
    later tags is passed over."""
    whole = joined(tags, key)
    try:
        return None if whole is None else json.JSONDecoder().raw_decode(whole)[0]
    except json.JSONDecodeError:
        return None
