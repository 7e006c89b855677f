"""A ready-made foundation: a local diffusers folder, or a hub id at a pinned revision, checked against digests."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from sana_sprint import storage

if TYPE_CHECKING:
    from sana_sprint.config import LoadFoundation


def foundation(params: LoadFoundation, out: Path) -> dict[str, float]:
    """Copies the foundation into `out` and returns its number of files. Raises ValueError for a missing source, a
    digest that differs, or weights that are not safetensors."""
    source = Path(params.source)
    if not source.is_dir():
        source = download(params)
    for name, recorded in params.sha256.items():
        if not (source / name).is_file():
            raise ValueError(f"{source / name}: foundation.model.sha256 names this file and it is not there")
        if storage.digest(source / name) != recorded:
            raise ValueError(f"{source / name}: its sha256 differs from foundation.model.sha256 in the profile")
    foreign = [p.name for p in source.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]
    if foreign:
        raise ValueError(f"{source}: holds {foreign[0]}; only safetensors weights are read, remove or convert it")
    with storage.whole_folder(out) as unfinished:
        shutil.copytree(source, unfinished, dirs_exist_ok=True)
    return {"files": float(sum(p.is_file() for p in out.rglob("*")))}


def download(params: LoadFoundation) -> Path:
    """Returns the local snapshot of a hub id at its pinned revision."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(params.source, revision=params.revision, allow_patterns=SAFE))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ValueError(
            f"foundation.model.source: '{params.source}' is no local folder and the hub does not give it at revision "
            f"{params.revision} ({type(error).__name__}); download it to a folder and name that"
        ) from None


SAFE = ["*.json", "*.safetensors", "*.txt", "*.model"]
