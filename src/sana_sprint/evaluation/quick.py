"""A quick score of a network in memory, on a few prompts of the protocol: what pruning reports before the cut, after
it and after healing, and what distillation reports while it runs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from sana_sprint.data import manifest
from sana_sprint.evaluation import generate, judges, protocol, tally
from sana_sprint.maths import sample
from sana_sprint.models import networks

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from diffusers import SanaTransformer2DModel
    from torch import Tensor

    from sana_sprint.config import Evaluate, Sampling


class Score:
    """The judge, its prompts, and the teacher's folder whose text encoder and decoder every network borrows."""

    def __init__(
        self,
        params: Evaluate,
        sampling: Sampling,
        sigma_d: float,
        teacher: Path,
        raw: Path,
        judge: Path,
        num: int,
    ) -> None:
        rows = manifest.read(raw, "eval")
        tasks = len(protocol.prompts(rows, params.model_copy(update={"prompts_per_task": 1})))
        few = params.model_copy(update={"prompts_per_task": max(1, num // tasks)})
        self.prompts = protocol.prompts(rows, few)
        self.judge = judges.load(params.judge, judge)
        self.params = params
        self.loaded = generate.load(teacher, sampling, sigma_d)

    def of_teacher(self, network: SanaTransformer2DModel) -> dict[str, float]:
        """Returns {"overall", "overall_se"} of a teacher at sampling.teacher_steps, {} for a judge without verdicts."""
        borrowed = self._with(network)
        return self._judged(borrowed, borrowed.teacher)

    def of_student(self, network: SanaTransformer2DModel) -> dict[str, float]:
        """Returns the same of a student that is not distilled yet: the flow ODE with its embedded guidance."""
        borrowed = self._with(network)

        @torch.no_grad()
        def draw(captions: Sequence[str], noises: Sequence[Tensor]) -> np.ndarray:
            text, sampling = borrowed.text(captions), borrowed.sampling
            guidance_B = torch.full((len(text),), sampling.guidance, device=borrowed.device)
            v = networks.flow_velocity(borrowed.pipe.transformer, text, guidance_B)
            times = sample.flow_times(sampling.teacher_steps, sampling.teacher_shift)
            return borrowed.decode(sample.flow_ode(v, noises[0].to(borrowed.device), times))

        return self._judged(borrowed, draw)

    def rest(self) -> None:
        """Leaves the accelerator to others until the next score."""
        self.loaded.pipe.to("cpu")
        torch.cuda.empty_cache()

    def _with(self, network: SanaTransformer2DModel) -> generate.Loaded:
        self.loaded.pipe.transformer = network.eval()
        self.loaded.pipe.to(self.loaded.device)
        return replace(self.loaded)

    def _judged(self, borrowed: generate.Loaded, draw: generate.Draw, steps: int = 1) -> dict[str, float]:
        if self.params.judge == "none":
            return {}
        pictures = generate.pictures(
            borrowed, draw, self.prompts, steps, self.params.seed, self.params.batch, "quick score"
        )
        result = tally.by_task(self.prompts, self.judge(pictures, self.prompts))
        return {"overall": result["overall"]["value"], "overall_se": result["overall"]["se"]} if result else {}

    def of_steps(self, network: SanaTransformer2DModel, steps: int) -> dict[str, float]:
        """Returns the same of a distilled student in 1 to 4 steps."""
        borrowed = self._with(network)
        return self._judged(borrowed, borrowed.student, steps)


@dataclass
class StudentScorer:
    """Scores a student in training at some step counts; travels to other processes as its settings alone."""

    params: Evaluate
    sampling: Sampling
    sigma_d: float
    teacher: Path
    raw: Path
    judge: Path
    num: int
    steps: tuple[int, ...] = (1, 2, 4)

    @cached_property
    def score(self) -> Score:
        """The judge and its prompts, made at the first use."""
        return Score(self.params, self.sampling, self.sigma_d, self.teacher, self.raw, self.judge, self.num)

    def __call__(self, network: SanaTransformer2DModel) -> dict[str, float]:
        """Returns the overall score by step count, {} for a judge without verdicts. The network stays as it was."""
        training = network.training
        scores = {str(k): self.score.of_steps(network, k).get("overall") for k in self.steps}
        network.train(training)
        return {k: value for k, value in scores.items() if value is not None}
