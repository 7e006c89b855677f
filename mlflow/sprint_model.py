"""The registered student as an MLflow model (models from code): prompts in, PNG pictures as base64 out.

MLflow copies this file beside the weights, so it imports nothing of this repository. `artifacts["pipeline"]`
is the stock SanaSprintPipeline folder with its sampling.json.
"""

from __future__ import annotations

import base64
import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd

PROMPTS_PER_BATCH = 8


class SprintModel(mlflow.pyfunc.PythonModel):
    """Draws a picture for each row of the column `prompt`; a seed draws the same picture in any batch."""

    def load_context(self, context: Any) -> None:
        """Loads the pipeline and its sampling settings, on the accelerator if there is one."""
        import torch
        from diffusers import SanaSprintPipeline

        folder = Path(context.artifacts["pipeline"])
        self.sampling = json.loads((folder / "sampling.json").read_text())
        self.pipeline = SanaSprintPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        self.pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
        self.pipeline.set_progress_bar_config(disable=True)

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Returns a table with the column `png` (base64). Raises ValueError for a step count without a time
        list or a size that the autoencoder cannot make.
        """
        asked = {
            "steps": 4,
            "seed": 0,
            "guidance": self.sampling["guidance"],
            "height": self.sampling["height_px"],
            "width": self.sampling["width_px"],
        } | (params or {})
        prompts = [str(prompt) for prompt in model_input["prompt"]]
        groups = [prompts[at : at + PROMPTS_PER_BATCH] for at in range(0, len(prompts), PROMPTS_PER_BATCH)]
        pictures = [picture for group in groups for picture in self.draw(group, **asked)]
        return pd.DataFrame({"png": [encoded(picture) for picture in pictures]})

    def draw(self, prompts: list[str], steps: int, seed: int, guidance: float, height: int, width: int) -> list[Any]:
        """Returns a PIL picture for each prompt."""
        import torch

        times = self.sampling["times"].get(str(steps))
        if times is None:
            known = ", ".join(sorted(self.sampling["times"], key=int))
            raise ValueError(f"steps: this model has no time list for {steps} steps; it has: {known}")
        # diffusers 0.42 forgets the step count when it hands a time list to SCMScheduler
        scheduler = self.pipeline.scheduler
        scheduler.set_timesteps = partial(type(scheduler).set_timesteps, scheduler, int(steps))
        return list(
            self.pipeline(
                prompt=prompts,
                num_inference_steps=int(steps),
                timesteps=times,
                max_timesteps=None,
                intermediate_timesteps=None,
                guidance_scale=float(guidance),
                height=int(height),
                width=int(width),
                generator=[torch.Generator().manual_seed(int(seed)) for _ in prompts],
                use_resolution_binning=False,
                clean_caption=False,
                max_sequence_length=self.sampling["max_tokens"],
                complex_human_instruction=self.sampling["instruction"] or None,
            ).images
        )


def encoded(picture: Any) -> str:
    """Returns a PIL picture as base64 of its PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


mlflow.models.set_model(SprintModel())
