"""The folder of a training's checkpoints: which of them are whole, and the newest of a run.

A checkpoint is a folder step-<iteration> with safetensors weights, optimisers.pt (read with weights_only=True) and
checkpoint.json, which carries the digest of each file and the key of the run; of sharded networks, one safetensors file
per worker in place of weights and optimisers.pt. A run continues only from a checkpoint of its own key, so changed
params, data or weights start from zero; from either form, on any number of workers. saving.py writes and restores them.
Of a flow training an iteration is a step.
"""

from __future__ import annotations

import fcntl
import shutil
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sana_sprint import storage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sana_sprint.config import Distill

STATE = "checkpoint.json"
STOP = "stop-requested"
SHARDS = "shard-*.safetensors"


class Stopped(Exception):  # noqa: N818  no error
    """The run was asked to stop and has saved."""


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Within the block this process alone writes there. Waits for one that still does, as the workers of a
    driver that was killed do for some seconds; the system releases what a process that has died had."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.stderr.write(f"{folder}: another training still writes here; waiting for its end\n")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def draws_grid(params: Distill, iteration: int) -> bool:
    """Whether an iteration ends with a grid and its quick score: every `grid_every`-th and the last."""
    return iteration % params.grid_every == 0 or iteration == params.iterations


def best(folder: Path) -> Path | None:
    """Returns the checkpoint of the highest mean score, the newest of equals, or None where none was scored. One that
    cannot be read now has none."""
    scored = []
    for path in folder.glob("step-*"):
        with suppress(OSError):
            if values := state(path).get("scores", {}).values():
                scored.append((sum(values) / len(values), path))
    return max(scored)[1] if scored else None


def until(folder: Path, iteration: int) -> Path | None:
    """Returns the newest checkpoint of no later iteration, or None."""
    return max((p for p in folder.glob("step-*") if number(p) <= iteration), default=None)


def forget_after(folder: Path, iteration: int) -> None:
    """Removes the checkpoints of later iterations, which hold a fault that showed only afterwards."""
    for path in folder.glob("step-*"):
        if number(path) > iteration:
            shutil.rmtree(path, ignore_errors=True)  # all workers may be at it


def code(parts: Sequence[str] = ("maths", "models", "training")) -> str:
    """Returns the digest of the code of these parts of the package; by default of all that a training executes."""
    package = Path(__file__).parents[1]
    files = sorted(file for part in parts for file in (package / part).glob("*.py"))
    return storage.digest_of([storage.digest(file) for file in files])


def go_on_from(path: Path, whose: str = "") -> None:
    """Says which checkpoint a run goes on from, and warns of one that other code has made."""
    sys.stdout.write(f"{whose}going on from {path}\n")
    if state(path).get("code") != code():
        sys.stderr.write(
            f"warning: {path}: the code of this training was another one then, so that the result may be of both; to "
            f"begin anew delete {path.parent}\n"
        )


def number(path: Path) -> int:
    """Returns the iteration of a checkpoint by its name."""
    return int(path.name.removeprefix("step-"))


def newest(folder: Path, key: str) -> Path | None:
    """Returns the newest whole checkpoint of this key, or None. Broken ones are named and skipped; those of another
    key belong to other params or inputs and are removed. Raises OSError for one that cannot be read now: it may be
    whole."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        if state(path).get("key", key) != key:
            shutil.rmtree(path, ignore_errors=True)  # all workers may be at it
        elif fault := broken(path):
            sys.stderr.write(f"warning: {path}: {fault}; skipped, trying the one before\n")
        else:
            return path
    return None


def clear(folder: Path) -> None:
    """Removes the checkpoints of a finished training."""
    shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Removes what was being written when a run was killed, at any iteration."""
    for unfinished in folder.glob(f"{storage.UNFINISHED}*"):
        shutil.rmtree(unfinished, ignore_errors=True)


def state(path: Path) -> dict[str, Any]:
    """Returns the content of a checkpoint's checkpoint.json, {} where there is none or not all of it. Raises OSError
    where it cannot be read."""
    try:
        return dict(storage.read_json(path / STATE))
    except (ValueError, NotADirectoryError):
        return {}
    except OSError as error:
        raise OSError(
            f"{path}: cannot be read now ({error}); start again when it can, or delete it to go on from the one before"
        ) from error


def broken(path: Path) -> str:
    """Returns what is wrong with a checkpoint, or ''."""
    files = state(path).get("files")
    if not files:
        return "half-written checkpoint (no readable checkpoint.json)"
    for name, digest in files.items():
        if not (path / name).is_file() or storage.digest(path / name) != digest:
            return f"half-written checkpoint ({name} does not match its digest)"
    return ""
