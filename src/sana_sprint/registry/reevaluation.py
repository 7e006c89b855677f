"""Re-evaluation: the champion is scored again under the protocol of the version that is to follow it, and the scores
stand in its tags beside those that it was registered with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sana_sprint.registry import history, measured, versions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient


def champion(server: MlflowClient, name: str) -> tuple[ModelVersion, Path]:
    """Returns the champion and its pipeline folder. Raises ValueError when there is none or its files are gone."""
    version = versions.version_of(server, name, versions.CHAMPION)
    if version is None:
        raise ValueError(f"{name}: no version has the alias '{versions.CHAMPION}', so there is none to evaluate again")
    return version, versions.fetched(server, version) / versions.PIPELINE


def same_protocol(challenger: ModelVersion, digest: str) -> None:
    """Raises ValueError when the working tree's protocol, by its digest, is not that of the challenger."""
    wanted = challenger.tags.get(measured.DIGEST, "none")
    if digest != wanted:
        commit = challenger.tags.get("git_commit", "unknown")
        raise ValueError(
            f"the protocol of this working tree is {digest[:12]}, version {challenger.version} was scored under "
            f"{wanted[:12]}: check out its commit ({commit[:12]}) and its data, or run `dvc repro register` here"
        )


def record(server: MlflowClient, version: ModelVersion, evaluation: Mapping[str, Any], folder: Path) -> None:
    """Adds an evaluation to a version, and the tags of its folder where it has none."""
    tags = measured.reevaluation_tags(evaluation, history.who(), history.now())
    if measured.FILES not in version.tags:
        tags |= measured.folder_tags(folder)
    for key, value in tags.items():
        server.set_model_version_tag(version.name, str(version.version), key, value)
