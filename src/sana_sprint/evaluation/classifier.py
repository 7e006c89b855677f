"""A small convolutional classifier of captions: the judge of data whose captions are classes, such as digits.

It is trained on the eval split, which no generator sees, and its accuracy is measured on the train split,
which it never saw itself: a student cannot have learnt from it, nor it from a student's data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from sana_sprint import storage
from sana_sprint.evaluation import fitting, weights

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from torch import Tensor

    from sana_sprint.config import TrainJudge

SIZE_PX = 32
RESIZE = f"mean over areas to {SIZE_PX} px (torch interpolate, area), [-1, 1]"
SHIFT_PX = 2
NOISE = 0.1
WIDTHS = (16, 32, 64)


@dataclass(frozen=True)
class Classifier:
    """A network and the captions its outputs stand for."""

    network: nn.Module
    captions: list[str]

    @torch.inference_mode()
    def read(self, pictures: np.ndarray, batch: int = 256) -> list[str]:
        """Returns the caption each picture (N, H, W, 3) uint8 looks like most."""
        x = shrunk(pictures)
        numbers = torch.cat([self.network(part).argmax(1) for part in x.split(batch)])
        return [self.captions[number] for number in numbers.tolist()]

    def save(self, folder: Path) -> None:
        """Writes model.safetensors and config.json into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.network.state_dict(), folder / "model.safetensors")
        storage.write_json(folder / "config.json", {"captions": self.captions})


def network(classes: int) -> nn.Sequential:
    """Returns three convolutions with pooling and a linear reading of the pooled map."""
    layers: list[nn.Module] = []
    for before, after in zip((3, *WIDTHS), WIDTHS, strict=False):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(8, after), nn.SiLU(), nn.MaxPool2d(2)]
    side = SIZE_PX // 2 ** len(WIDTHS)
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(WIDTHS[-1] * side**2, classes))


def shrunk(pictures: np.ndarray) -> Tensor:
    """Returns pictures (N, H, W, 3) uint8 as (N, 3, 32, 32) in [-1, 1], averaged over areas."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    return functional.interpolate(x, (SIZE_PX, SIZE_PX), mode="area")


def train(params: TrainJudge, pictures: np.ndarray, captions: Sequence[str]) -> Classifier:
    """Returns a classifier of the distinct captions, trained with shifts and noise, deterministic from
    params.seed.
    """
    known = sorted(set(captions))
    if len(known) < 2:
        raise ValueError("judge.model.classifier_steps: the eval split holds one caption, nothing to tell apart; set 0")
    x, label = shrunk(pictures), torch.tensor([known.index(caption) for caption in captions])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params.seed)
        model = network(len(known))

        def loss_of(rows: Tensor) -> Tensor:
            return functional.cross_entropy(model(augmented(x[rows])), label[rows], label_smoothing=0.05)

        steps, batch = params.classifier_steps, params.batch
        fitting.fit(model, loss_of, len(x), steps, batch, params.optimizer, params.seed, "judge classifier")
    return Classifier(model, known)


def augmented(x: Tensor) -> Tensor:
    """Returns pictures shifted by up to 2 px in each direction, edges repeated, with Gaussian noise."""
    padded = functional.pad(x, [SHIFT_PX] * 4, mode="replicate")
    shifts = torch.randint(0, 2 * SHIFT_PX + 1, (len(x), 2)).tolist()
    moved = [p[:, top : top + SIZE_PX, left : left + SIZE_PX] for p, (top, left) in zip(padded, shifts, strict=True)]
    return torch.stack(moved) + NOISE * torch.randn_like(x)


def accuracy(classifier: Classifier, pictures: np.ndarray, captions: Sequence[str]) -> float:
    """Returns the share of pictures read as their caption."""
    return sum(a == b for a, b in zip(classifier.read(pictures), captions, strict=True)) / len(captions)


def load(folder: Path) -> Classifier:
    """Returns a saved classifier. Raises ValueError when the judge stage trained none."""
    if not (folder / "model.safetensors").is_file():
        raise ValueError(f"{folder}: no classifier; judge 'classes' needs judge.model.classifier_steps above 0")
    captions = storage.read_json(folder / "config.json")["captions"]
    model = network(len(captions))
    with weights.readable(folder / "model.safetensors", "run `dvc repro -f judge`"):
        state = load_file(folder / "model.safetensors")
    model.load_state_dict(state, strict=True)
    return Classifier(model.eval(), captions)
