"""A user's process with stock MLflow and diffusers, without this package.

A line of stdin is a JSON {"uri", "place"}: it loads the model by its uri, draws with it, downloads its files below
`place` and draws with those by diffusers; it answers with a line of JSON on stdout."""

import base64
import io
import json
import os
import sys
from pathlib import Path

ANSWERS = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # what libraries print is no answer


def answer(uri: str, place: str) -> dict:
    import mlflow
    import pandas as pd
    from diffusers import SanaSprintPipeline

    table = pd.DataFrame({"prompt": ["a red circle"]})
    png = mlflow.pyfunc.load_model(uri).predict(table, params={"steps": 1, "seed": 3})["png"][0]
    Path(place).mkdir()
    folder = Path(mlflow.artifacts.download_artifacts(uri, dst_path=place), "artifacts/pipeline")
    pipeline = SanaSprintPipeline.from_pretrained(folder)
    how = {"height": 64, "width": 64, "max_sequence_length": 16, "complex_human_instruction": None}
    picture = pipeline("a red circle", num_inference_steps=2, use_resolution_binning=False, **how).images[0]
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return {
        "png": png,
        "folder": str(folder),
        "by_diffusers": base64.b64encode(buffer.getvalue()).decode(),
        "ours": sorted(name for name in sys.modules if name.startswith("sana_sprint")),
    }


for line in sys.stdin:
    ANSWERS.write(json.dumps(answer(**json.loads(line))) + "\n")
