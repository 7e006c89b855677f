"""The batches of distillation, whose heads also judge pictures under captions that are not theirs."""

from typing import Any

from sana_sprint.maths import ladd
from sana_sprint.training import draws


class Pairs(draws.Batches):
    """Batches with "misaligned": for each caption the latents of another row of the global batch, none in a global
    batch of one."""

    def __getitem__(self, step: int) -> dict[str, Any]:
        """Returns the batch of a step."""
        others = self.share.of(ladd.misaligned(self.every(step)))
        return super().__getitem__(step) | {"misaligned": self.latents.x[others]}
