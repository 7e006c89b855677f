"""Distances of a folder of pictures to real ones of the same captions: FID, KID, CMMD, precision, recall, CLIP score.

The features of each batch are kept, keyed by the pictures' bytes, the network's weights and the code that makes them:
a run that was cut short goes on where it was, and the real pictures are looked at once for all students. Deleting the
cache is always safe.
"""

from __future__ import annotations

import os
import uuid
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from sana_sprint import storage
from sana_sprint.evaluation import (
    clip_judge,
    folder_pictures,
    folder_protocol,
    generate,
    judging,
    picture_cache,
    tally,
    weights,
)
from sana_sprint.maths import distances, metrics
from sana_sprint.models import inception

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from sana_sprint.evaluation.folder_protocol import Distances, Size

GROUPS = 10  # of the jackknife
CODE = {"inception": (inception, folder_pictures), "clip": (clip_judge, folder_pictures)}
RESIZE = {"inception": inception.RESIZE, "clip": clip_judge.RESIZE}


@dataclass(frozen=True)
class Pair:
    """A drawn picture, the real one of the same caption, the caption and its category."""

    drawn: Path
    real: Path
    caption: str
    category: str


def pairs(protocol: Distances, folder: Path, root: Path) -> list[Pair]:
    """Returns the pictures of both folders, caption by caption. Raises ValueError naming what is missing."""
    reference, captions = root / protocol.reference, folder_protocol.captions(protocol, root)
    if len(captions) < protocol.fid_pictures_min:
        raise ValueError(
            f"pictures: {len(captions)} are too few for FID, fid_pictures_min is {protocol.fid_pictures_min}"
        )
    rows = min(len(captions), protocol.pairwise_pictures_max)
    left = rows - -(-rows // GROUPS)  # by the jackknife
    if left <= protocol.neighbours:
        raise ValueError(
            f"pictures: {rows} are too few for precision and recall with {protocol.neighbours} neighbours: without a "
            f"tenth of them, for the standard error, {left} are left; raise pictures and pairwise_pictures_max"
        )
    found = []
    for name, one in captions.items():
        drawn, real = (existing(base / one["category"], name) for base in (folder, reference))
        found.append(Pair(drawn, real, one["prompt"], one["category"]))
    return found


def existing(place: Path, name: str) -> Path:
    """Returns the picture of a name in a folder, whatever its kind."""
    path = next(
        (place / f"{name}{kind}" for kind in folder_pictures.KINDS if (place / f"{name}{kind}").is_file()), None
    )
    if path is None:
        raise ValueError(f"{place / name}: no picture of that name ({', '.join(folder_pictures.KINDS)}) there")
    return path


@dataclass(frozen=True)
class Batch:
    """Pictures that a network takes at once, the size that they must have, and the file of their features."""

    network: str
    paths: Sequence[Path]
    size: Size | None
    file: Path


def batches(
    paths: Sequence[Path], digests: Sequence[str], network: str, cache: Path, number: int, size: Size | None
) -> list[Batch]:
    """Returns pictures in batches of a number, whose files are named by the pictures' digests."""
    found = []
    for start in range(0, len(paths), number):
        part = slice(start, start + number)
        name = storage.digest_of(list(digests[part]))[:32]
        whole = [path.absolute() for path in paths[part]]  # a worker may start elsewhere
        found.append(Batch(network, whole, size, cache / f"{name}.safetensors"))
    return found


def networks(protocol: Distances, root: Path) -> Callable[[Batch], Tensor]:
    """Returns what makes features (N, D) of a batch."""
    clip = clip_judge.load(root / protocol.clip.folder)
    network = inception.load(root / protocol.inception.folder).to(generate.device())
    clip.model.to(generate.device())

    def look(batch: Batch) -> Tensor:
        pictures = [folder_pictures.read(path, batch.size) for path in batch.paths]
        return clip.pictures(pictures) if batch.network == "clip" else network.features(pictures, len(pictures))

    return look


def features(
    protocol: Distances, asked: Sequence[Pair], digests: dict[str, list[str]], places: dict[str, Path], root: Path
) -> dict[str, Any]:
    """Returns {network: {"real" and "drawn": features (N, D)}}, those of each batch kept in a file in the network's
    place. `digests` are those of the "real" and the "drawn" pictures asked."""
    found: dict[str, dict[str, list[Batch]]] = {}
    real, drawn, number = [pair.real for pair in asked], [pair.drawn for pair in asked], protocol.batch
    for name, place in places.items():
        sized = place / f"{protocol.size_px.width}x{protocol.size_px.height}"  # what lies there had this size
        found[name] = {
            "real": batches(real, digests["real"], name, place, number, None),
            "drawn": batches(drawn, digests["drawn"], name, sized, number, protocol.size_px),
        }
    every = [batch for parts in found.values() for part in parts.values() for batch in part]
    missing = list({batch.file: batch for batch in every if not batch.file.is_file()}.values())
    looks = judging.spread(partial(networks, protocol, root.absolute()), missing)
    for batch, seen in tqdm(looks, total=len(missing), desc="features", mininterval=3):
        batch.file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = batch.file.with_name(f"{storage.UNFINISHED}{uuid.uuid4().hex}")  # another command may be at it too
        save_file({"features": seen.contiguous()}, unfinished)
        unfinished.replace(batch.file)
    return {
        name: {kind: torch.cat([kept(batch.file) for batch in part]) for kind, part in parts.items()}
        for name, parts in found.items()
    }


def kept(file: Path) -> Tensor:
    """Returns the features of a file, which counts as used now. Raises ValueError naming it when it is broken."""
    os.utime(file)
    with weights.readable(file, "delete it and run this again"):
        return load_file(file)["features"]


def run(protocol: Distances, folder: Path, cache: Path, root: Path, how: dict[str, Any]) -> dict[str, Any]:
    """Returns FID, KID and precision and recall on Inception features, FID and CMMD on CLIP's, the CLIP score, and FID
    and CLIP score per category."""
    asked = pairs(protocol, folder, root)
    judges = folder_protocol.weights(protocol, root)
    digests = {
        "real": [storage.digest(pair.real) for pair in asked],
        "drawn": [storage.digest(pair.drawn) for pair in asked],
    }
    captions = storage.digest_of([pair.caption for pair in asked])
    described = (
        protocol.model_dump() | judges | {"real": storage.digest_of(digests["real"]), "captions_asked": captions}
    )
    described |= how | {"resize": RESIZE, "jackknife_groups": GROUPS, "cmmd_bandwidth": distances.BANDWIDTH}
    places = {name: cache / f"features-{key(name, one['sha256'])}" for name, one in judges.items()}
    seen = features(protocol, asked, digests, places, root)
    clip = clip_judge.load(root / protocol.clip.folder)
    clip.model.to(generate.device())
    texts = clip.captions([pair.caption for pair in asked])
    return {
        "protocol": described,
        "protocol_digest": storage.digest_of(described),
        "pictures": len(asked),
        "scores": measured(seen, texts, protocol) | {"categories": by_category(asked, seen, texts)},
    }


def key(network: str, sha256: str) -> str:
    """Returns the name of the folder of a network's features: all that they depend on but the pictures."""
    made = picture_cache.made_by(CODE[network], folder_pictures.LIBRARIES)
    return storage.digest_of([sha256, RESIZE[network], made])[:16]


def measured(seen: dict[str, dict[str, Tensor]], texts: Tensor, protocol: Distances) -> dict[str, dict[str, float]]:
    """Returns every score of the whole folder with its standard error; those that compare every picture with every
    other on as many as the protocol says, evenly spaced."""
    pairs = [(seen[name]["real"], seen[name]["drawn"]) for name in ("inception", "clip")]
    (real, drawn), (real_clip, drawn_clip) = pairs
    rows = torch.linspace(0, len(drawn) - 1, min(len(drawn), protocol.pairwise_pictures_max)).round().long()
    few, few_clip = real[rows], real_clip[rows]
    scores: dict[str, tuple[Callable[[Tensor], float], Tensor]] = {
        "kid": (lambda generated: distances.kid(few, generated), drawn[rows]),
        "cmmd": (lambda generated: distances.cmmd(few_clip, generated), drawn_clip[rows]),
        "precision": (
            lambda generated: distances.precision_recall(few, generated, protocol.neighbours)[0],
            drawn[rows],
        ),
        "recall": (lambda generated: distances.precision_recall(few, generated, protocol.neighbours)[1], drawn[rows]),
    }
    found = {
        "fid": metrics.frechet_estimate(real, drawn, GROUPS),
        "fid_clip": metrics.frechet_estimate(real_clip, drawn_clip, GROUPS),
        "clip_score": metrics.clip_score(drawn_clip, texts),
    } | {name: metrics.jackknife(score, generated, GROUPS) for name, (score, generated) in scores.items()}
    return {name: tally.plain(estimate) for name, estimate in found.items()}


def by_category(
    asked: Sequence[Pair], seen: dict[str, dict[str, Tensor]], texts: Tensor
) -> dict[str, dict[str, float]]:
    """Returns FID, CLIP score and count per category."""
    rows: dict[str, list[int]] = defaultdict(list)
    for number, pair in enumerate(asked):
        rows[pair.category].append(number)
    found = {}
    for name, mine in sorted(rows.items()):
        real, drawn = (seen["inception"][kind][mine] for kind in ("real", "drawn"))
        clip = metrics.clip_score(seen["clip"]["drawn"][mine], texts[mine]).value
        found[name] = {"clip_score": round(clip, tally.DIGITS), "n": len(mine)}
        if len(mine) > 1:
            found[name] |= {"fid": round(metrics.frechet(real, drawn), tally.DIGITS)}
    return found
