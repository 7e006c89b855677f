"""Orders of pictures: one for each of a list of prompts, drawn in this process or by Ray workers.

An order is carried out in calls of a network. A call holds neighbouring prompts, as many as `at_once` says for pictures
of this size, and is carried out whole even where one of its pictures alone is wanted. So a picture is the same bit for
bit however many workers there are and wherever a run was cut short.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch

from sana_sprint import cluster
from sana_sprint.evaluation import generate
from sana_sprint.models import networks, threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    import numpy as np

    from sana_sprint.config import Sampling
    from sana_sprint.evaluation.generate import Loaded
    from sana_sprint.evaluation.protocol import Prompt

AT_ONCE_MOST = 16  # of 64 px, 48 take a CPU a fifth less time, and leave less for workers to share
PIXELS_AT_ONCE = 4 * 1024**2

_opened: dict[str, Loaded] = {}  # the pipeline that this process drew with last, by its folder's digest


@dataclass(frozen=True)
class Order:
    """Pictures to be drawn: by the pipeline of a folder with this digest, as a student in `steps` steps or as a teacher
    in sampling.teacher_steps (the same number), from the noise of `seed` and each prompt's index, `at_once` a call."""

    folder: Path
    digest: str
    network: Literal["student", "teacher"]
    sampling: Sampling
    sigma_d: float
    steps: int
    seed: int
    precision: Literal["float32", "bf16-mixed"]
    at_once: int
    prompts: Sequence[Prompt]

    def calls(self) -> list[Order]:
        """Returns the order cut into those that are one call of the network."""
        starts = range(0, len(self.prompts), self.at_once)
        return [replace(self, prompts=self.prompts[start : start + self.at_once]) for start in starts]


def at_once(sampling: Sampling) -> int:
    """Returns how many pictures evaluate draws in a call: 16, fewer where those of 4 megapixels are fewer."""
    return max(1, min(AT_ONCE_MOST, PIXELS_AT_ONCE // (sampling.height_px * sampling.width_px)))


def opened(order: Order) -> Loaded:
    """Returns the pipeline of an order, ready to draw; the last one used stays in memory until another is asked for."""
    if order.digest not in _opened:
        _opened.clear()  # first, so that there is room
        _opened[order.digest] = generate.load(order.folder, order.sampling, order.sigma_d)
    return replace(_opened[order.digest], sampling=order.sampling, sigma_d=order.sigma_d)


def forget() -> None:
    """Frees the accelerator of the pipeline used last, for workers that draw on it from now on."""
    _opened.clear()
    torch.cuda.empty_cache()


def drawn(call: Order) -> np.ndarray:
    """Returns a picture (N, H, W, 3) uint8 per prompt of a call, the same on any number of cores."""
    loaded = opened(call)
    draw = {"student": loaded.student, "teacher": loaded.teacher}[call.network]
    noises = generate.noises(loaded, call.prompts, call.steps if call.network == "student" else 1, call.seed)
    mixed = call.precision == "bf16-mixed"
    if mixed:
        networks.keep_float32(loaded.pipe.transformer)  # in bfloat16 the times near pi/2 are one
    with threads.one(), torch.autocast(loaded.device.type, torch.bfloat16, enabled=mixed):
        return draw([prompt.caption for prompt in call.prompts], noises)


def begin(cores: int) -> Callable[[Order], np.ndarray]:  # noqa: ARG001  one of them is used
    """Returns `drawn`, for a process of Ray's."""
    silence()
    return drawn


def silence() -> None:
    """Turns off the libraries' progress bars, which nobody wants of a process of Ray's."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()


class Crew:
    """Draws here, or on the cluster's workers where SANA_SPRINT_WORKERS, or else the number of this machine's GPUs, is
    more than one. Ray is joined at the first call and left when the `with` block ends. Raises ValueError for a number
    of workers that cannot be."""

    def __init__(self) -> None:
        self.workers = cluster.chosen_workers(max(torch.cuda.device_count(), 1))
        self.stack = ExitStack()
        self.hands: cluster.Workers[Order, np.ndarray] | None = None

    def __enter__(self) -> Crew:
        """Returns the crew."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves the cluster."""
        self.stack.close()

    def draw(self, calls: Sequence[Order]) -> Iterator[tuple[Order, np.ndarray]]:
        """Yields each call with its pictures (N, H, W, 3) uint8, in the order in which they are done."""
        if self.workers == 1:
            for call in calls:
                yield call, drawn(call)
        elif calls:
            if self.hands is None:
                place = self.stack.enter_context(cluster.Joined())
                self.hands = self.stack.enter_context(cluster.Workers(begin, place))
            yield from self.hands.spread(calls)
