"""The batches of distillation, whose heads also judge pictures under captions that are not theirs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sana_sprint.maths import ladd
from sana_sprint.training import draws

if TYPE_CHECKING:
    from torch import Tensor

    from sana_sprint.models.networks import Text


@dataclass(frozen=True)
class Seen:
    """What one step sees: clean latents with their captions, the misaligned latents, numbers, iteration and turn."""

    x_0: Tensor
    misaligned: Tensor
    text: Text
    numbers: draws.Draws
    iteration: int
    turn: int

    def parts(self) -> list[Seen]:
        """Returns what each pass of SANA_SPRINT_MICRO_BATCH rows sees; the whole where that is not set."""
        count = draws.passes_of(len(self.x_0))
        if count == 1:
            return [self]
        each = (self.x_0.chunk(count), self.misaligned.chunk(count), self.text.chunk(count), self.numbers.parts(count))
        return [Seen(*rows, self.iteration, self.turn) for rows in zip(*each, strict=True)]


class Pairs(draws.Batches):
    """Batches with "misaligned": for each caption the latents of another row of the global batch, none in a global
    batch of one."""

    def __getitem__(self, step: int) -> dict[str, Any]:
        """Returns the batch of a step."""
        others = self.share.of(ladd.misaligned(self.every(step)))
        return super().__getitem__(step) | {"misaligned": self.latents.x[others]}
