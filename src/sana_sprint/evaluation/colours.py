"""The colours of objects as GenEval asks CLIP for them (arXiv:2310.11513, arXiv:2103.00020 section 3.1.4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from torch.nn import functional

from sana_sprint.evaluation import geneval

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from sana_sprint.evaluation.clip_judge import Clip
    from sana_sprint.evaluation.geneval import Found


@dataclass(frozen=True)
class Colours:
    """A CLIP that tells ten colours apart, with the classifiers of the classes that it was asked about."""

    clip: Clip
    classifiers: dict[str, Tensor] = field(default_factory=dict)

    def of(self, picture: np.ndarray) -> Callable[[Sequence[Found], str], list[str]]:
        """Returns the function that names the colours of objects of a class in a picture (H, W, 3) uint8."""

        def colours_of(objects: Sequence[Found], thing: str) -> list[str]:
            features = self.clip.pictures([cut_out(picture, one) for one in objects])
            cosine = functional.normalize(features, dim=1) @ self.classifier(thing).T
            return [geneval.COLOURS[index] for index in cosine.argmax(1).tolist()]

        return colours_of

    def classifier(self, thing: str) -> Tensor:
        """Returns the classifier (10, D) of a class, rows of length 1 in the order of geneval.COLOURS: the mean of the
        normalised embeddings of its texts.
        """
        if thing not in self.classifiers:
            texts = [text.format(colour=c, thing=thing) for c in geneval.COLOURS for text in geneval.COLOUR_TEXTS]
            features = functional.normalize(self.clip.captions(texts), dim=1)
            means = features.unflatten(0, (len(geneval.COLOURS), len(geneval.COLOUR_TEXTS))).mean(1)
            self.classifiers[thing] = functional.normalize(means, dim=1)
        return self.classifiers[thing]


def cut_out(picture: np.ndarray, one: Found) -> np.ndarray:
    """Returns an object's box (h, w, 3) of a picture (H, W, 3) uint8, grey outside its mask if it has one."""
    shown = picture
    if one.mask is not None:
        assert one.mask.shape == picture.shape[:2], f"mask {one.mask.shape} of a picture {picture.shape}"
        shown = np.where(one.mask[:, :, None], picture, np.array(geneval.AROUND, dtype=picture.dtype))
    left, top, right, bottom = (round(edge) for edge in one.box)
    return shown[top:bottom, left:right]
