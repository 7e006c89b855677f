"""The detector of GenEval: a Mask2Former for COCO's instances (arXiv:2112.01527) from a local transformers folder.

Its outputs are read as mmdetection reads them, which GenEval used (mmdet/models/seg_heads/panoptic_fusion_heads/
maskformer_fusion_head.py, `instance_postprocess`): one query may be several classes and masks may overlap.
Shapes: Q queries, C classes; mask logits are (h, w) as the network gives them, pictures (H, W).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional

from sana_sprint.evaluation import judge_folder
from sana_sprint.evaluation.geneval import Found

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from torch import Tensor

ARCHITECTURE = "Mask2FormerForUniversalSegmentation"
REMEDY = "fetch the folder again"
MOST_DETECTIONS = 100  # mmdetection, configs/mask2former/mask2former_r50_lsj_8x2_50e_coco.py, test_cfg.max_per_image
EMPTY_MASK = 1e-6  # mmdetection's guard of the mean over a mask
RULES = {"most_detections": MOST_DETECTIONS, "empty_mask": EMPTY_MASK}  # as JSON, for a protocol
GENEVAL_NAMES = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    # names of PASCAL VOC that public COCO detectors carry instead of COCO's own
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
}  # what a detector calls a class: what GenEval's evaluation/object_names.txt calls it, where they differ


class Sizes(NamedTuple):
    """Height and width in pixels of what the network saw, of the part of it that was the picture (from its top left,
    the rest is padding) and of the picture itself.
    """

    padded: tuple[int, int]
    resized: tuple[int, int]
    picture: tuple[int, int]


class Outline(NamedTuple):
    """The mask (H, W) bool of a query, its box and the mean probability of the mask's pixels."""

    mask: np.ndarray
    box: tuple[float, float, float, float]
    quality: float


@dataclass(frozen=True)
class Detector:
    """A Mask2Former, the image processor of its folder and GenEval's names of its classes in the network's order."""

    model: Any
    processor: Any
    names: tuple[str, ...]
    size: dict[str, int] | None  # to which pictures are resized, None: as the folder's preprocessor says

    def detect(self, pictures: Sequence[np.ndarray] | np.ndarray) -> list[dict[str, list[Found]]]:
        """Returns the objects in each RGB uint8 picture (H, W, 3) by class, at most 100 a picture with their masks.
        Pictures go through the network one at a time, so none depends on the others.
        """
        return [self.look(picture) for picture in pictures]

    @torch.inference_mode()
    def look(self, picture: np.ndarray) -> dict[str, list[Found]]:
        """Returns the objects in one picture by class."""
        own = {"size": self.size} if self.size else {}
        inputs = self.processor([picture], input_data_format="channels_last", return_tensors="pt", **own)
        seen = inputs["pixel_mask"][0].bool()
        out = self.model(inputs["pixel_values"].to(self.model.device), inputs["pixel_mask"].to(self.model.device))
        resized = (int(seen.any(1).sum()), int(seen.any(0).sum()))
        sizes = Sizes((seen.shape[0], seen.shape[1]), resized, (picture.shape[0], picture.shape[1]))
        return instances(out.class_queries_logits[0], out.masks_queries_logits[0], self.names, sizes)


def instances(class_logits: Tensor, mask_logits: Tensor, names: Sequence[str], sizes: Sizes) -> dict[str, list[Found]]:
    """Returns the objects by class that class logits (Q, C + 1), the last of which is "no object", and mask logits
    (Q, h, w) state: the 100 likeliest pairs of query and class, scored by the class's probability times the mean
    probability of the mask's pixels. Empty masks are no objects.
    """
    prob_QC = class_logits.float().softmax(-1)[:, :-1]
    assert prob_QC.shape[1] == len(names), f"{prob_QC.shape[1]} classes, {len(names)} names"
    best = prob_QC.flatten().topk(min(MOST_DETECTIONS, prob_QC.numel()))
    places = [divmod(place, len(names)) for place in best.indices.tolist()]
    outlines = {q: outline(at_picture(mask_logits[q], sizes)) for q in sorted({q for q, _ in places})}
    found: dict[str, list[Found]] = defaultdict(list)
    for prob, (q, c) in zip(best.values.tolist(), places, strict=True):
        seen = outlines[q]
        if seen is not None:
            found[names[c]].append(Found(seen.box, prob * seen.quality, seen.mask))
    return dict(found)


def at_picture(logits: Tensor, sizes: Sizes) -> Tensor:
    """Returns mask logits (h, w) at the picture's pixels (H, W), by mmdetection's two bilinear steps: to what the
    network saw, then without its padding to the picture.
    """
    seen = resized(logits.float(), sizes.padded)
    return resized(seen[: sizes.resized[0], : sizes.resized[1]], sizes.picture)


def resized(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns a map (h, w) at another size, bilinear between the centres of its pixels."""
    return functional.interpolate(logits[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]


def outline(logits: Tensor) -> Outline | None:
    """Returns the mask of logits (H, W) above 0 with its box, right and bottom exclusive; None for an empty mask."""
    mask = logits > 0
    rows, columns = (mask.any(axis).nonzero()[:, 0].tolist() for axis in (1, 0))
    if not rows:
        return None
    quality = float((logits.sigmoid() * mask).sum() / (mask.sum() + EMPTY_MASK))
    box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    return Outline(mask.cpu().numpy(), box, quality)


def load(folder: Path, size: dict[str, int] | None = None) -> Detector:
    """Returns the detector of a local folder, for pictures resized to `size` (as transformers names it, None: as the
    folder's preprocessor says). Raises ValueError naming the folder and what it lacks or is instead."""
    from transformers import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessorPil

    config = judge_folder.content(folder, "config.json", ARCHITECTURE, REMEDY)
    architecture = ", ".join(config.get("architectures") or [str(config.get("model_type"))])
    if architecture != ARCHITECTURE:
        raise ValueError(f"{folder}: holds {architecture}, the detector must be {ARCHITECTURE}; {REMEDY}")
    judge_folder.content(folder, "preprocessor_config.json", ARCHITECTURE, REMEDY)
    model = judge_folder.network(Mask2FormerForUniversalSegmentation, folder, REMEDY)
    processor = Mask2FormerImageProcessorPil.from_pretrained(folder, local_files_only=True)
    labels = [model.config.id2label[index] for index in range(model.config.num_labels)]
    return Detector(model, processor, tuple(GENEVAL_NAMES.get(label, label) for label in labels), size)
