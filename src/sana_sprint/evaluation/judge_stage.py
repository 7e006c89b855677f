"""Stage judge: the CLIP behind FID and CLIP score, the classifier of captions, and the features of real
pictures.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from sana_sprint import config, storage
from sana_sprint.data import manifest, shards
from sana_sprint.evaluation import classifier, clip_judge
from sana_sprint.maths import metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from torch import Tensor

FEATURE_BATCH = 64


def run(params: config.Judge, raw: Path, folder: Path) -> dict[str, Any]:
    """Makes data/models/judge: clip/, reference.safetensors (features of the eval split), classifier/ where
    asked for, and judge.json. Returns judge.json's content: accuracies on pictures the judges were not
    trained on.
    """
    with storage.whole_folder(folder) as unfinished:
        clip = made_clip(params, raw, unfinished / "clip")
        features = reference(clip, raw)
        save_file({"features": features}, unfinished / "reference.safetensors")
        captions = [row.caption for row in manifest.read(raw, "eval")]
        summary: dict[str, Any] = {"clip": params.model.kind, "reference_pictures": len(features)}
        summary |= {f"retrieval_{k}": v for k, v in clip_judge.retrieval(clip, features, captions).items()}
        real = metrics.clip_score(features, clip.captions(captions))
        summary |= {"real_clip_score": real.value, "real_clip_score_se": real.se}
        if isinstance(params.model, config.TrainJudge) and params.model.classifier_steps:
            summary |= made_classifier(params.model, raw, unfinished / "classifier")
        storage.write_json(unfinished / "judge.json", summary)
    return summary


def made_clip(params: config.Judge, raw: Path, folder: Path) -> clip_judge.Clip:
    """Writes the CLIP's folder, trained on the train split or copied from the given one, and returns it as
    saved.
    """
    if isinstance(params.model, config.LoadJudge):
        source = Path(params.model.clip)
        clip_judge.load(source)
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.bin", "*.msgpack", "*.h5", ".*"))
    else:
        captions = [row.caption for row in manifest.read(raw, "train")]
        clip_judge.train(params.model, shards.stack(raw, "train"), captions).save(folder)
    return clip_judge.load(folder)


def reference(clip: clip_judge.Clip, raw: Path) -> Tensor:
    """Returns the features (N, D) of the eval split in the manifest's order, never holding more than one
    batch.
    """
    return torch.cat([clip.pictures(part) for part in batches(raw, "eval")])


def batches(raw: Path, split: str) -> Iterator[list[np.ndarray]]:
    """Yields the pictures of a split in lists of up to 64."""
    part: list[np.ndarray] = []
    for _, picture in shards.images(raw, split):
        part.append(picture)
        if len(part) == FEATURE_BATCH:
            yield part
            part = []
    if part:
        yield part


def made_classifier(params: config.TrainJudge, raw: Path, folder: Path) -> dict[str, float]:
    """Writes the classifier trained on the eval split; returns its accuracy on the train split, never shown
    to it.
    """
    captions = {split: [row.caption for row in manifest.read(raw, split)] for split in ("eval", "train")}
    judge = classifier.train(params, shards.stack(raw, "eval"), captions["eval"])
    judge.save(folder)
    right = metrics.proportion(
        round(classifier.accuracy(judge, shards.stack(raw, "train"), captions["train"]) * len(captions["train"])),
        len(captions["train"]),
    )
    return {
        "classifier_accuracy": right.value,
        "classifier_accuracy_se": right.se,
        "classes": len(judge.captions),
    }
