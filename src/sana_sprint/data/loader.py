"""Cached latents and text embeddings as tensors, and batches that are a pure function of seed and step.

Latents are (N, C, H, W) float32 of SANA's scale (autoencoder output * scaling_factor, not multiplied by
sigma_d). Embeddings are (B, L, D) with mask (B, L). Used by the stages teacher, prune, convert and distill.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sana_sprint import storage

if TYPE_CHECKING:
    from pathlib import Path

INDEX = "index.json"


class Latents:
    """A split of data/latents in the order of the manifest.

    Attributes:
        x: latents (N, C, H, W) float32.
        captions: (N,) int64, each picture's row in `sentences`.
        sentences: the distinct captions; row 0 is the empty one.
        embeds: (M, L, D), one per sentence, as stored.
        mask: (M, L) int64.
        scaling_factor: of the autoencoder; decode takes x / scaling_factor.
    """

    def __init__(self, folder: Path, split: str) -> None:
        """Reads data/latents. Raises ValueError naming a missing or corrupt file, or a split without
        pictures.
        """
        index = storage.read_json(folder / INDEX)
        parts = [shard for shard in index["shards"] if shard["split"] == split]
        if not parts:
            raise ValueError(f"{folder}: no latents of split '{split}'; run `dvc repro -f encode`")
        tensors = [read(folder / part["file"], {"latents", "captions"}) for part in parts]
        for part, tensor in zip(parts, tensors, strict=True):
            if len(tensor["latents"]) != part["count"] or len(tensor["captions"]) != part["count"]:
                raise ValueError(f"{folder / part['file']}: not {part['count']} pictures; {MEND}")
        self.x = joined([tensor["latents"] for tensor in tensors])
        self.captions = joined([tensor["captions"] for tensor in tensors])
        text = read(folder / index["captions_file"], {"embeds", "mask"})
        self.sentences: list[str] = index["captions"]
        self.embeds, self.mask = text["embeds"], text["mask"]
        self.scaling_factor: float = index["scaling_factor"]
        if len(self.embeds) != len(self.sentences) or int(self.captions.max()) >= len(self.sentences):
            raise ValueError(f"{folder / index['captions_file']}: does not fit {INDEX}; {MEND}")

    def __len__(self) -> int:
        """Returns the number of pictures."""
        return len(self.x)

    def batch(self, step: int, batch: int, seed: int) -> Tensor:
        """Returns the pictures (batch,) int64 of a step: every epoch is a new permutation, so resuming needs
        no sampler state.
        """
        return permuted(len(self), step, batch, seed)

    def text(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Returns embeddings (B, L, D) float32 and mask (B, L) of the captions of pictures `indices` (B,)."""
        return self.sentence(self.captions[indices])

    def sentence(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns embeddings (B, L, D) float32 and mask (B, L) of rows (B,) of `sentences`."""
        return self.embeds[rows].float(), self.mask[rows]

    @property
    def null(self) -> tuple[Tensor, Tensor]:
        """Embedding (1, L, D) float32 and mask (1, L) of the empty caption."""
        return self.sentence(torch.zeros(1, dtype=torch.int64))


MEND = "delete the file and run `dvc repro -f encode`"


def read(path: Path, names: set[str]) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file. Raises ValueError when it is missing, corrupt or lacks
    one.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; run `dvc repro -f encode` to make it")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: corrupt ({error}); {MEND}") from error
    if not names <= set(tensors):
        raise ValueError(f"{path}: lacks {sorted(names - set(tensors))}; {MEND}")
    return tensors


def joined(parts: list[Tensor]) -> Tensor:
    """Returns the parts one after the other; a single one stays memory-mapped."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def permuted(count: int, step: int, batch: int, seed: int) -> Tensor:
    """Returns items step * batch ... (step + 1) * batch of an endless row of permutations of range(count)."""
    place = torch.arange(step * batch, (step + 1) * batch)
    epochs = range(int(place[0]) // count, int(place[-1]) // count + 1)
    row = torch.cat([permutation(count, epoch, seed) for epoch in epochs])
    return row[place - epochs[0] * count]


@lru_cache(maxsize=4)
def permutation(count: int, epoch: int, seed: int) -> Tensor:
    """Returns the order (count,) of an epoch."""
    mixed = int(storage.digest_of([seed, epoch])[:15], 16)
    return torch.randperm(count, generator=torch.Generator().manual_seed(mixed))
