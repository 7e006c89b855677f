"""The teacher fine-tune (arXiv:2503.09641, section 3.1): dense time, QK-norm, all layers together, EMA saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sana_sprint.data.loader import Latents
from sana_sprint.models import bundle, passes
from sana_sprint.models.networks import Text
from sana_sprint.training import draws, flow

if TYPE_CHECKING:
    import lightning as L
    from diffusers import SanaTransformer2DModel

    from sana_sprint.config import Sampling, Teacher
    from sana_sprint.training.kept import Kept


def fine_tune(
    params: Teacher,
    sampling: Sampling,
    teacher: SanaTransformer2DModel,
    foundation: Path,
    latents: Path,
    out: Path,
    extra: list[L.Callback],
    kept: Kept | None = None,
) -> None:
    """Writes `teacher`, fine-tuned, as a stock SanaPipeline folder that shares the foundation's frozen parts; with
    `kept` it goes on from where a run that was killed has come."""
    torch.manual_seed(params.seed)
    data = Latents(latents, "train")
    module = flow.FlowTraining(teacher.train(), Text(*data.null), params.flow, params.seed)
    passes.arrange(module.transformer)
    batches = draws.Batches(data, params.flow.batch, params.seed, params.flow.steps, draws.Share(0, 1))
    flow.fit(module, batches, params.flow.steps, extra, "teacher", params.precision, kept)
    averaged = module.averaged.eval()
    bundle.save_teacher(out, averaged, bundle.load_frozen_parts(foundation), sampling.teacher_shift)
