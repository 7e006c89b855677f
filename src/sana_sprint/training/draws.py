"""Randomness and batches as pure functions of (seed, step): a resumed run, and a run on another number of workers,
sees the same numbers."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sana_sprint.models.networks import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sana_sprint.data.loader import Latents


MICRO_BATCH = "SANA_SPRINT_MICRO_BATCH"


def seed(of_params: int, attempt: int) -> int:
    """Returns the seed of a run's draws and batches: the params' own, and others after a return to a checkpoint,
    which with the same numbers would only fall ill again."""
    return of_params + 1_000_000_007 * attempt


@dataclass(frozen=True)
class Share:
    """The rows of a global batch that fall to one worker."""

    rank: int
    world: int

    def of(self, x: Tensor) -> Tensor:
        """Returns this worker's contiguous rows. Raises ValueError if the batch cannot be shared out."""
        if len(x) % self.world:
            raise ValueError(
                f"a global batch of {len(x)} cannot be shared by {self.world} workers; change SANA_SPRINT_WORKERS"
            )
        return x.chunk(self.world)[self.rank]


def passes_of(rows: int) -> int:
    """Returns in how many equal passes, of at most SANA_SPRINT_MICRO_BATCH rows, this worker's rows of a step are
    computed; 1 where it is not set. Raises ValueError where it is no positive number."""
    chosen = os.environ.get(MICRO_BATCH, "")
    if not chosen:
        return 1
    if not chosen.isdigit() or chosen.strip("0") == "":
        raise ValueError(f"{MICRO_BATCH}={chosen}: must be a positive number of rows")
    return next(count for count in range(1, rows + 1) if rows % count == 0 and rows // count <= int(chosen))


class Draws:
    """Random numbers of one step, drawn for the global batch on the CPU and cut to a worker's share, or to a part of
    it: the first part that comes to a number draws it for all."""

    def __init__(self, seed: int, step: int, batch: int, share: Share, device: torch.device | str) -> None:
        self.generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
        self.batch, self.share, self.device = batch, share, device
        self.drawn: list[Tensor] = []
        self.next, self.rows = 0, slice(None)

    def parts(self, count: int) -> list[Draws]:
        """Returns the numbers of each of `count` equal parts of the worker's rows; nothing may be drawn yet."""
        assert not self.drawn
        found, size = [copy.copy(self) for _ in range(count)], self.batch // self.share.world // count
        for index, part in enumerate(found):
            part.rows = slice(index * size, (index + 1) * size)
        return found

    def normal(self, *shape: int) -> Tensor:
        """Returns N(0, 1) numbers (B, *shape)."""
        return self._mine(lambda: torch.randn(self.batch, *shape, generator=self.generator))

    def uniform(self) -> Tensor:
        """Returns numbers in [0, 1) (B,)."""
        return self._mine(lambda: torch.rand(self.batch, generator=self.generator))

    def choice(self, values: Sequence[float]) -> Tensor:
        """Returns a value per sample (B,), all equally likely."""
        among = torch.tensor(values, dtype=torch.float32)
        return self._mine(lambda: among[torch.randint(len(values), (self.batch,), generator=self.generator)])

    def _mine(self, draw: Callable[[], Tensor]) -> Tensor:
        if self.next == len(self.drawn):
            self.drawn.append(self.share.of(draw()).to(self.device))
        self.next += 1
        return self.drawn[self.next - 1][self.rows]


class Batches(Dataset):
    """Item k is the worker's share of the batch of step k: {"step", "rows", "x_0", "embeds", "mask"}."""

    def __init__(self, latents: Latents, batch: int, seed: int, steps: int, share: Share) -> None:
        self.latents, self.batch, self.seed, self.steps, self.share = latents, batch, seed, steps, share

    def __len__(self) -> int:
        """Returns the number of steps."""
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        """Returns the batch of a step."""
        rows = self.share.of(self.every(step))
        embeds, mask = self.latents.text(rows)
        return {"step": step, "rows": rows, "x_0": self.latents.x[rows], "embeds": embeds, "mask": mask}

    def every(self, step: int) -> Tensor:
        """Returns the rows of the global batch of a step, all workers' shares."""
        return self.latents.batch(step, self.batch, self.seed)


def text_of(batch: dict[str, Any]) -> Text:
    """Returns the captions of a batch."""
    return Text(batch["embeds"], batch["mask"])
