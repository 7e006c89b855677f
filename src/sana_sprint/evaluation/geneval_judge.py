"""GenEval's judge of pictures: what the detector sees, its colours by CLIP, GenEval's rules about both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sana_sprint.evaluation import clip_judge, detector, generate, geneval
from sana_sprint.evaluation.colours import Colours

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np

    from sana_sprint.evaluation.detector import Detector
    from sana_sprint.evaluation.judges import Verdict
    from sana_sprint.evaluation.protocol import Prompt


@dataclass(frozen=True)
class GenEval:
    """The judge of prompts whose demand is a line of GenEval's metadata."""

    detector: Detector
    colours: Colours

    def __call__(self, pictures: np.ndarray | Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[Verdict]:
        """Returns the verdicts on pictures, an array (N, H, W, 3) uint8 or a list of them in any sizes."""
        for prompt in prompts:
            self.check(prompt)
        return [self.look(picture, prompt)[0] for picture, prompt in zip(pictures, prompts, strict=True)]

    def look(self, picture: np.ndarray, prompt: Prompt) -> tuple[Verdict, list[dict[str, Any]]]:
        """Returns the verdict on a picture (H, W, 3) uint8 and the objects that counted for it as JSON, "class", "box"
        in pixels and "score", by class and score. Raises ValueError for a prompt that cannot be judged.
        """
        self.check(prompt)
        (detected,) = self.detector.detect([picture])
        tag = prompt.demand["tag"]
        found = {name: geneval.kept(detected[name], tag, geneval.MAX_OVERLAP) for name in sorted(detected)}
        verdict = geneval.verdict(found, prompt.demand, self.colours.of(picture))
        seen = [{"class": n, "box": list(o.box), "score": o.score} for n, objects in found.items() for o in objects]
        return verdict, seen

    def check(self, prompt: Prompt) -> None:
        """Raises ValueError for a prompt without GenEval's demand or about a class that the detector does not know."""
        if "tag" not in prompt.demand:
            raise ValueError(f"{prompt.key}: no GenEval metadata in its demand; choose another judge for such prompts")
        clauses = [*prompt.demand["include"], *prompt.demand.get("exclude", [])]
        unknown = sorted({clause["class"] for clause in clauses} - set(self.detector.names))
        if unknown:
            raise ValueError(
                f"{prompt.key}: the detector knows no {', '.join(unknown)}; its classes are those of its config.json's "
                f"id2label, which for GenEval must be COCO's 80"
            )


def load(detector_folder: Path, clip_folder: Path, detector_size: dict[str, int] | None = None) -> GenEval:
    """Returns the judge of two local folders, on the accelerator if there is one. Raises ValueError naming what one
    lacks. `detector_size`: that of its folder's preprocessor by default."""
    eyes, clip = detector.load(detector_folder, detector_size), clip_judge.load(clip_folder)
    for model in (eyes.model, clip.model):
        model.to(generate.device())
    return GenEval(eyes, Colours(clip))
