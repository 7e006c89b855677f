"""What the loaders of judges and pipelines say of weights that cannot be read."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from safetensors import SafetensorError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LACKING = "no weights in whole safetensors files"


@contextmanager
def readable(place: Path, remedy: str) -> Iterator[None]:
    """Within the block a file of weights that is missing, cut or no safetensors raises a ValueError that names the
    place and the remedy."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{place}: {LACKING} ({reason:.300}); {remedy}") from error
