"""What MLflow keeps of a student: a LoggedModel of its folder with card, signature, example and requirements."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import contextmanager
from importlib import metadata
from typing import TYPE_CHECKING, Any

from sana_sprint import storage
from sana_sprint.registry import lineage, store, track, trust

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from mlflow.models import ModelSignature

MODEL_CODE = "mlflow/sprint_model.py"
REQUIREMENTS = ("torch", "diffusers", "transformers", "pandas")


def requirements() -> list[str]:
    """Returns what the registered model needs, pinned to what is installed (without local labels such as
    +cpu).
    """
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in REQUIREMENTS]


def signature(sampling: Mapping[str, Any]) -> ModelSignature:
    """Returns the signature: a prompt in, a base64 PNG out, and the params with the defaults of
    sampling.json.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    defaults: dict[str, tuple[str, Any]] = {
        "steps": ("long", 4),
        "seed": ("long", 0),
        "guidance": ("double", float(sampling["guidance"])),
        "height": ("long", sampling["height_px"]),
        "width": ("long", sampling["width_px"]),
    }
    return ModelSignature(
        inputs=Schema([ColSpec("string", "prompt")]),
        outputs=Schema([ColSpec("string", "png")]),
        params=ParamSchema([ParamSpec(name, kind, default) for name, (kind, default) in defaults.items()]),
    )


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def staging(root: Path, name: str) -> Path:
    """Returns the folder in which a version of a model is put together. It is called by the name's digest, which leads
    nowhere else whatever the name is."""
    return root / store.FOLDER / ".staging" / storage.digest_of(name)[:16]


@contextmanager
def with_card(student: Path, text: str, sampling: Mapping[str, Any], place: Path) -> Iterator[Path]:
    """Yields a copy of the student's folder (hard links where the disk allows) with the card as its README.md and
    `sampling`, which knows the schedule, as its sampling.json; the student itself, an output that DVC watches, stays as
    it is. MLflow names the artefact after the last part of `place`, whose parent is removed afterwards.
    """
    shutil.rmtree(place.parent, ignore_errors=True)
    own = shutil.ignore_patterns("README.md", "sampling.json", trust.HUB_CACHE)
    shutil.copytree(student, place, copy_function=_link, ignore=own)
    try:
        (place / "README.md").write_text(text)
        storage.write_json(place / "sampling.json", sampling)
        yield place
    finally:
        shutil.rmtree(place.parent, ignore_errors=True)


def log_model(folder: Path, example: str, sampling: Mapping[str, Any], tags: dict[str, str], run: track.Run) -> str:
    """Returns the id of the LoggedModel that holds the folder: pyfunc from the code of mlflow/, with signature, input
    example and pinned requirements. It belongs to `run`, which stays open.
    """
    import mlflow
    import pandas as pd

    mlflow.set_tracking_uri(run.uri)
    with without_bytecode(), mlflow.start_run(run_id=run.run_id):
        logged = mlflow.pyfunc.log_model(
            name="student",
            python_model=str(lineage.repository() / MODEL_CODE),
            artifacts={"pipeline": str(folder)},
            signature=signature(sampling),
            input_example=(pd.DataFrame({"prompt": [example]}), {"steps": 1}),
            pip_requirements=requirements(),
            tags=tags,
        )
    # leaving the block ended the run; the stage that owns it is still at work
    store.client(run.uri).update_run(run.run_id, status="RUNNING")
    assert logged.model_id is not None
    return str(logged.model_id)


@contextmanager
def without_bytecode() -> Iterator[None]:
    """Keeps Python from writing what it compiles: MLflow runs the model's code where it puts the version together, and
    would send that too."""
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before
