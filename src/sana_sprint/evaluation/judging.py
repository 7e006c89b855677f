"""Pictures of folders are looked at in this process or by Ray workers, one thread each: what is seen is the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch

from sana_sprint import cluster
from sana_sprint.evaluation import drawing
from sana_sprint.models import threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Share = TypeVar("Share")
Seen = TypeVar("Seen")


def spread(summon: Callable[[], Callable[[Share], Seen]], shares: Sequence[Share]) -> Iterator[tuple[Share, Seen]]:
    """Yields every share of the work with what the judge that `summon` loads saw in it, in the order in which they are
    done. There are as many judges as workers; none is loaded where there is nothing to do. Paths in them must be whole:
    a worker may start elsewhere. Raises ValueError for a number of workers that cannot be."""
    workers = cluster.chosen_workers(max(torch.cuda.device_count(), 1))
    if not shares:
        return
    if workers == 1:
        look = alone(summon)
        for share in shares:
            yield share, look(share)
        return

    def begin(_cores: int) -> Callable[[Share], Seen]:
        drawing.silence()
        return alone(summon)

    with cluster.Joined() as place, cluster.Workers(begin, place) as hands:
        yield from hands.spread(shares)


def alone(summon: Callable[[], Callable[[Share], Seen]]) -> Callable[[Share], Seen]:
    """Returns a judge that looks with one thread. It is loaded for the first share, so that what is wrong with its
    weights is told as a fault of the work, not as the death of a worker."""
    loaded: list[Callable[[Share], Seen]] = []

    def look(share: Share) -> Seen:
        with threads.one():
            if not loaded:
                loaded.append(summon())
            return loaded[0](share)

    return look
