"""A judge's local folder in transformers' format: what must lie in it, and errors of one line that name what does not
fit and what to do."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from sana_sprint.evaluation import weights

if TYPE_CHECKING:
    from pathlib import Path

FILES = ("config.json", "model.safetensors", "preprocessor_config.json")


def content(folder: Path, name: str, kind: str, remedy: str) -> dict[str, Any]:
    """Returns what a JSON file of the folder of a network of this kind says. Raises ValueError naming the first of
    FILES that is missing, or the file when it is cut or no JSON object."""
    for file in FILES:
        if not (folder / file).is_file():
            raise ValueError(f"{folder}: no {file}; it must be a transformers {kind} folder with safetensors weights")
    try:
        found = json.loads((folder / name).read_text())
    except ValueError as error:
        raise ValueError(f"{folder / name}: not valid JSON ({error}); {remedy}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{folder / name}: no JSON object; {remedy}")
    return found


def network(kind: Any, folder: Path, remedy: str) -> Any:
    """Returns the folder's network, a transformers class, in float32 and ready to judge. Raises ValueError for weights
    that are missing, cut, no safetensors or of another shape than config.json says."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # transformers' table of what does not fit; ours is one line
    try:
        with weights.readable(folder, remedy):
            made, loading = kind.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # told below, by their names
                output_loading_info=True,
            )
    finally:
        logging.set_verbosity(before)
    told, place = kind.__name__, folder / "model.safetensors"
    others = sorted((name, list(given), list(asked)) for name, given, asked in loading["mismatched_keys"])
    if others:
        name, given, asked = others[0]
        raise ValueError(
            f"{place}: {len(others)} weights of another shape than config.json gives a {told} ({name}: {given} for "
            f"{asked}); {remedy}"
        )
    lacking = sorted(set(loading["missing_keys"]) & {name for name, _ in made.named_parameters()})
    if lacking:
        raise ValueError(f"{place}: lacks {len(lacking)} weights ({lacking[0]}) of a {told}; {remedy}")
    return made.eval()
