"""Distances of a folder of pictures to real ones of the same captions: FID, KID, CMMD, precision, recall, CLIP score.

The features of each batch are kept, keyed by the pictures' bytes and the network's weights: a run that was cut short
goes on where it was, and the real pictures are looked at once for all students. Deleting the cache is always safe.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from sana_sprint import storage
from sana_sprint.evaluation import clip_judge, folder_pictures, folder_protocol, generate, tally
from sana_sprint.maths import distances, metrics
from sana_sprint.models import inception

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from torch import Tensor

    from sana_sprint.evaluation.folder_protocol import Distances, Size

    Network = Callable[[list[np.ndarray]], Tensor]  # RGB uint8 pictures to features (N, D)

GROUPS = 10  # of the jackknife


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


def features(paths: Sequence[Path], network: Network, cache: Path, batch: int, size: Size | None, name: str) -> Tensor:
    """Returns the features (N, D) of pictures, those of each batch kept in a file by their bytes."""
    parts = []
    for start in tqdm(range(0, len(paths), batch), desc=name, mininterval=3):
        part = paths[start : start + batch]
        file = cache / f"{storage.digest_of([storage.digest(path) for path in part])[:32]}.safetensors"
        if not file.is_file():
            seen = network([folder_pictures.read(path, size) for path in part])
            with storage.whole_file(file) as unfinished:
                save_file({"features": seen.contiguous()}, unfinished)
        parts.append(load_file(file)["features"])
    return torch.cat(parts)


def run(protocol: Distances, folder: Path, cache: Path, root: Path, how: dict[str, Any]) -> dict[str, Any]:
    """Returns FID, KID and precision and recall on Inception features, FID and CMMD on CLIP's, the CLIP score, and FID
    and CLIP score per category."""
    asked = pairs(protocol, folder, root)
    weights = folder_protocol.weights(protocol, root)
    real = storage.digest_of([storage.digest(pair.real) for pair in asked])
    described = protocol.model_dump() | weights | {"real": real, "captions_asked": [pair.caption for pair in asked]}
    described |= how
    described["resize"] = f"Inception: bilinear to 299 px, no antialiasing; CLIP: {clip_judge.RESIZE}"
    clip = clip_judge.load(root / protocol.clip.folder)
    network = inception.load(root / protocol.inception.folder).to(generate.device())
    clip.model.to(generate.device())
    nets: dict[str, Network] = {
        "inception": lambda pictures: network.features(pictures, len(pictures)),
        "clip": clip.pictures,
    }
    seen: dict[str, dict[str, Tensor]] = {}
    for name, net in nets.items():
        where = cache / f"features-{storage.digest_of([weights[name]['sha256'], described['resize']])[:16]}"
        sized = where / f"{protocol.size_px.width}x{protocol.size_px.height}"  # what lies there had this size
        seen[name] = {
            "real": features([p.real for p in asked], net, where, protocol.batch, None, f"{name}, real"),
            "drawn": features([p.drawn for p in asked], net, sized, protocol.batch, protocol.size_px, f"{name}, drawn"),
        }
    texts = clip.captions([pair.caption for pair in asked])
    return {
        "protocol": described,
        "protocol_digest": storage.digest_of(described),
        "pictures": len(asked),
        "scores": measured(seen, texts, protocol) | {"categories": by_category(asked, seen, texts)},
    }


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
