"""Pictures that outlast a kill: one PNG each in a folder of their own, named by a key over all that a picture depends
on.

The key covers the weights, how they draw, the prompts, the code and the libraries that draw. Who draws and how many of
them is no part of it. Deleting the cache is always safe.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from sana_sprint import storage
from sana_sprint.evaluation import drawing, generate, protocol
from sana_sprint.maths import flow, sample, trigflow
from sana_sprint.models import attention, networks

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import ModuleType

    from sana_sprint.evaluation.drawing import Crew, Order

CODE = (drawing, generate, protocol, flow, sample, trigflow, attention, networks)
LIBRARIES = ("torch", "diffusers", "transformers")
KEY_DIGITS = 24
UNUSED_S = 24 * 3600  # after which what no finished run names is taken for left over
OLD_S = 30 * UNUSED_S


def key(order: Order) -> str:
    """Returns the name of the folder of an order's pictures."""
    sampling = order.sampling
    how: dict[str, Any] = protocol.teacher(sampling)
    if order.network == "student":
        how = {"times": sampling.times[str(order.steps)], "guidance": sampling.guidance, "sigma_d": order.sigma_d}
    content = {
        "weights": order.digest,
        "network": order.network,
        "how": how,
        "seed": order.seed,
        "precision": order.precision,
        "at_once": order.at_once,
        "size_px": [sampling.height_px, sampling.width_px],
        "text": [sampling.max_tokens, sampling.instruction],
        "prompts": [[prompt.index, prompt.caption] for prompt in order.prompts],
    } | made_by(CODE, LIBRARIES)
    return storage.digest_of(content)[:KEY_DIGITS]


def made_by(modules: Sequence[ModuleType], libraries: Sequence[str]) -> dict[str, list[str]]:
    """Returns what a cache's key says of the code behind its content: digests of modules, versions of packages."""
    return {
        "code": [storage.digest(Path(str(module.__file__))) for module in modules],
        "libraries": [f"{name} {version(name)}" for name in libraries],
    }


def pictures(order: Order, cache: Path, crew: Crew, name: str) -> np.ndarray:
    """Returns a picture (N, H, W, 3) uint8 per prompt: those of the cache, and those missing there, which are drawn and
    kept. `name` is that of the progress bar."""
    folder = cache / key(order)
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)
    size = (order.sampling.height_px, order.sampling.width_px)
    there = {prompt.index: read(folder / f"{prompt.index}.png", size) for prompt in order.prompts}
    found = {index: picture for index, picture in there.items() if picture is not None}
    calls = [call for call in order.calls() if any(prompt.index not in found for prompt in call.prompts)]
    with tqdm(total=len(order.prompts), initial=len(found), desc=name, mininterval=3) as bar:
        for call, made in crew.draw(calls):
            new = {p.index: x for p, x in zip(call.prompts, made, strict=True) if p.index not in found}
            for index, picture in new.items():
                keep(folder / f"{index}.png", picture)
            found |= new
            bar.update(len(new))
    return np.stack([found[prompt.index] for prompt in order.prompts])


def read(path: Path, size: tuple[int, int]) -> np.ndarray | None:
    """Returns the picture of a file, or None when there is none of this size (height, width) that is whole."""
    try:
        with Image.open(path) as image:
            image.verify()  # the checksums, which reading alone does not look at
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError):  # missing or cut; a wrong checksum; broken compression
        return None
    return pixels if pixels.shape[:2] == size else None


def keep(path: Path, picture: np.ndarray) -> None:
    """Writes a picture, whole or not at all if this process is killed. It is not forced to the disk, which would take
    longer than drawing: what a power cut leaves of it `read` finds out."""
    unfinished = path.with_name(f"{storage.UNFINISHED}{path.name}")
    Image.fromarray(picture).save(unfinished, "PNG", compress_level=1)
    with contextlib.suppress(FileNotFoundError):  # another process has drawn the same one, and was faster
        unfinished.replace(path)


def forget(cache: Path, name: str, used: Iterable[str]) -> None:
    """Notes under a name which keys its finished run used, and removes the folders that no name's last run used and in
    which nothing was written for a day."""
    storage.write_json(cache / f"{name}.json", sorted(used))
    noted = {one for path in cache.glob("*.json") for one in storage.read_json(path)}
    for place in cache.iterdir():
        left = place.suffix != ".json" and place.name not in noted
        if left and time.time() - touched(place) > UNUSED_S:
            shutil.rmtree(place) if place.is_dir() else place.unlink()


def touched(place: Path) -> float:
    """Returns when something was last written to a file, or into a folder or one below it, in seconds."""
    below = (path for path in place.rglob("*") if path.is_dir())
    return max(path.stat().st_mtime for path in (place, *below))


def sweep(cache: Path) -> None:
    """Removes the files of a cache that nobody used for a month."""
    for path in cache.rglob("*"):
        if path.is_file() and time.time() - path.stat().st_mtime > OLD_S:
            path.unlink(missing_ok=True)
