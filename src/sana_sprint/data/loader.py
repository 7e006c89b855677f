"""Cached latents and text embeddings as tensors, and batches that are a pure function of seed and step.

Latents are (N, C, H, W) float32 of SANA's scale (autoencoder output * scaling_factor, not multiplied by
sigma_d). Embeddings are (B, L, D) with mask (B, L). Both stay in their files, memory-mapped: a process holds the rows
it asks for and not the corpus. Used by the stages teacher, prune, convert and distill.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sana_sprint import storage

if TYPE_CHECKING:
    from pathlib import Path

INDEX = "index.json"


class Rows:
    """Tensors of one shape but for their lengths, indexed by row as their concatenation is; the rows asked for are
    copied, all others left where they are.

    Attributes:
        shape: of the concatenation.
        dtype: of all.
    """

    def __init__(self, parts: list[Tensor]) -> None:
        """Raises ValueError when dtypes or the rows' shapes differ."""
        if len({(part.dtype, part.shape[1:]) for part in parts}) != 1:
            raise ValueError("tensors of unlike rows cannot follow each other")
        self.parts, self.dtype = parts, parts[0].dtype
        counts = torch.tensor([len(part) for part in parts])
        self.stops = counts.cumsum(0)
        self.starts = self.stops - counts
        self.shape = torch.Size((int(self.stops[-1]), *parts[0].shape[1:]))

    def __len__(self) -> int:
        """Returns the number of rows."""
        return self.shape[0]

    def __getitem__(self, index: Tensor | slice | int) -> Tensor:
        """Returns a copy of some rows, in the order of `index`."""
        rows = torch.arange(len(self))[index]
        part_of = torch.bucketize(rows, self.stops, right=True)
        found = torch.empty((*rows.shape, *self.shape[1:]), dtype=self.dtype)
        for number in part_of.unique().tolist():
            here = part_of == number
            found[here] = self.parts[number][rows[here] - self.starts[number]]
        return found


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
        shards = [shard for shard in index["shards"] if shard["split"] == split]
        if not shards:
            raise ValueError(f"{folder}: no latents of split '{split}'; run `dvc repro -f encode`")
        pictures = [read(folder, shard, {"latents", "captions"}) for shard in shards]
        text = [read(folder, part, {"embeds", "mask"}) for part in text_files(index)]
        self.sentences: list[str] = index["captions"]
        self.scaling_factor: float = index["scaling_factor"]
        self.x = Rows([tensors["latents"] for tensors in pictures])
        self.captions = torch.cat([tensors["captions"] for tensors in pictures])
        self.embeds, self.mask = (Rows([tensors[name] for tensors in text]) for name in ("embeds", "mask"))
        if len(self.embeds) != len(self.sentences) or int(self.captions.max()) >= len(self.sentences):
            raise ValueError(f"{folder / INDEX}: does not fit the files it names; {MEND}")

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


def text_files(index: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the files of embeddings and how many sentences each holds. A folder from before they were written in
    parts names one.
    """
    if "captions_file" in index:
        return [{"file": index["captions_file"], "count": len(index["captions"])}]
    return index["captions_files"]


def read(folder: Path, part: dict[str, Any], names: set[str]) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file that the index names, memory-mapped. Raises ValueError when it is
    missing, corrupt, lacks one or holds another number of rows.
    """
    path = folder / part["file"]
    if not path.is_file():
        raise ValueError(f"{path}: no such file; run `dvc repro -f encode` to make it")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: corrupt ({error}); {MEND}") from error
    if not names <= set(tensors):
        raise ValueError(f"{path}: lacks {sorted(names - set(tensors))}; {MEND}")
    if any(len(tensors[name]) != part["count"] for name in names):
        raise ValueError(f"{path}: does not fit {INDEX}, which says {part['count']} rows; {MEND}")
    return tensors


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
