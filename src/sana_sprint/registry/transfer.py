"""Transfer: a version goes from one registry to another (dev -> staging -> prod) with its files, card, lineage, scores
and past.

The files are read back from the new store and their digests compared before the version is made, so a version that is
there is whole. What the aliases and the history of the old registry say is told in tags; the new one has its own.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sana_sprint import storage
from sana_sprint.registry import digests, history, measured, moves, packed, store, versions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

PAST, ORIGIN = "transferred.past", "transferred.from"
OF_ITS_STORE = (moves.MARK, "mlflow.", "model_id")  # prefixes of tags that mean nothing elsewhere
OF_ITS_FILES = (digests.LIST, measured.FILES, measured.BYTES, measured.CARD)  # which were made with a version
IDENTITY = (measured.WEIGHTS, "sampling_digest")
PARAMS_MAX = 100


def transfer(
    source: MlflowClient, uri: str, target: MlflowClient, name: str | None = None, alias: str = versions.CHALLENGER
) -> dict[str, Any]:
    """Returns the transfer: the version here, the version there, and whether it is new. Files of the same digests are
    not copied twice. The version there gets `alias`. Raises ValueError naming what is missing or was not copied whole.
    """
    version = versions.resolve(source, uri)
    called = name or version.name
    if alias == versions.CHAMPION:
        raise ValueError("a transfer does not make a champion: `sana-sprint promote` there judges the version")
    there = existing(target, called, version)
    if there is None:
        there = _copied(source, version, target, called)
    else:
        _scores_again(source, version, target, target.get_model_version(called, there[0]))
    tags = {key: value for key, value in _tags(source, version).items() if there[1] or not key.startswith(OF_ITS_FILES)}
    for key, value in tags.items():
        target.set_model_version_tag(called, there[0], key, value)
    target.set_registered_model_alias(called, alias, there[0])
    return {
        "from": {"store": store.shown(source.tracking_uri), "name": version.name, "version": str(version.version)},
        "to": {"store": store.shown(target.tracking_uri), "name": called, "version": there[0], "alias": alias},
        "new": there[1],
        "weights_digest": version.tags.get(measured.WEIGHTS),
        "entries": len(past(source, version)),
    }


def existing(target: MlflowClient, name: str, version: ModelVersion) -> tuple[str, bool] | None:
    """Returns (number, False) of the newest version there with the same weights and sampling, or None."""
    mine = {key: version.tags.get(key) for key in IDENTITY}
    if mine[measured.WEIGHTS] is None:
        raise ValueError(
            f"{version.name} version {version.version} has no tag '{measured.WEIGHTS}', so nothing tells whether it is "
            "there already; register it again with `dvc repro --force --single-item register@SIZE`"
        )
    same = [one for one in versions.every(target, name) if {key: one.tags.get(key) for key in IDENTITY} == mine]
    return (str(same[-1].version), False) if same else None


def past(source: MlflowClient, version: ModelVersion) -> list[dict[str, Any]]:
    """Returns the entries of the history that name a version, oldest first."""
    number = str(version.version)
    events = history.read(source, version.name).events()
    return [event for event in events if number in (event["from"], event["to"])]


def _tags(source: MlflowClient, version: ModelVersion) -> dict[str, str]:
    """Returns what the version there is told of: all tags that mean something there, where it came from, its past."""
    told = {key: value for key, value in version.tags.items() if not key.startswith(OF_ITS_STORE)}
    came = {"store": store.shown(source.tracking_uri), "version": f"models:/{version.name}/{version.version}"}
    came |= {"by": history.who(), "at": history.now()}
    return told | packed.pack(ORIGIN, came) | packed.pack(PAST, past(source, version))


def _copied(source: MlflowClient, version: ModelVersion, target: MlflowClient, name: str) -> tuple[str, bool]:
    """Returns (number, True) of the new version, made once its files are there."""
    with tempfile.TemporaryDirectory(prefix="sana-sprint-transfer-") as place:
        folder = _whole(source, version, Path(place) / "out")
        digest = storage.digest(folder)
        model_id, run_id = _uploaded(source, version, target, folder)
        _verify(target, model_id, digest, Path(place) / "back")
    made = _version(source, version, target, name, model_id, run_id)
    return made, True


def _whole(source: MlflowClient, version: ModelVersion, place: Path) -> Path:
    """Returns a copy of a version's files, without what reading them there left behind. Raises ValueError naming those
    that are not as they were registered."""
    try:
        folder = versions.fetched(source, version, place, scores=True)
    except ValueError as error:
        raise ValueError(f"{error}; in {store.shown(source.tracking_uri)}, so nothing was copied") from None
    for path in [folder / digests.NOTE, *folder.glob("__pycache__/*")]:
        path.unlink(missing_ok=True)
    return folder


def _uploaded(source: MlflowClient, version: ModelVersion, target: MlflowClient, folder: Path) -> tuple[str, str]:
    """Returns the ids of the LoggedModel there and of the run that made it, with the metrics of the one here."""
    from sana_sprint.registry import shared_objects

    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # --json prints one JSON
    experiment = store.experiment(target, target.tracking_uri, version.tags.get("profile", "transfer"))
    label = f"transfer {version.name} {version.version}"
    came = f"{store.shown(source.tracking_uri)} models:/{version.name}/{version.version}"
    run_id = str(target.create_run(experiment, run_name=label, tags={"kind": "transfer", ORIGIN: came}).info.run_id)
    status = "FAILED"
    try:
        model = target.create_logged_model(experiment, "student", source_run_id=run_id, tags={ORIGIN: came})
        with shared_objects.copies(versions.root(source, version)):
            target.log_model_artifacts(model.model_id, str(folder))
        target.finalize_logged_model(model.model_id, "READY")
        status = "FINISHED"
    finally:
        target.set_terminated(run_id, status)
    return str(model.model_id), run_id


def _verify(target: MlflowClient, model_id: str, digest: str, place: Path) -> None:
    """Reads the files back. Raises ValueError when they are not those that were sent."""
    from mlflow.artifacts import download_artifacts

    place.mkdir()
    location = target.get_logged_model(model_id).artifact_location
    back = Path(download_artifacts(location, dst_path=str(place), tracking_uri=target.tracking_uri))
    if storage.digest(back) != digest:
        where = store.shown(target.tracking_uri)
        raise ValueError(f"{where}: the files of model {model_id} are not those that were sent; no version was made")


def _scores_again(source: MlflowClient, version: ModelVersion, target: MlflowClient, there: ModelVersion) -> None:
    """Copies evaluate's JSON to a version that is there already, where it is another one. Raises ValueError where it is
    not as it was registered."""
    from mlflow.artifacts import download_artifacts

    mine, its = (packed.unpack(one.tags, digests.SCORE_LIST) for one in (version, there))
    if mine is None or mine == its:
        return
    address = f"{versions.root(source, version)}/{digests.SCORES}"
    with tempfile.TemporaryDirectory(prefix="sana-sprint-transfer-") as place:
        folder = Path(download_artifacts(address, dst_path=place, tracking_uri=source.tracking_uri))
        if {f"{digests.SCORES}/{name}": digest for name, digest in digests.of(folder).items()} != mine:
            raise ValueError(f"{address}: not as it was registered, so nothing was copied")
        target.log_model_artifacts(there.tags["model_id"], str(folder), digests.SCORES)


def _version(
    source: MlflowClient, version: ModelVersion, target: MlflowClient, name: str, model_id: str, run_id: str
) -> str:
    """Returns the number of the new version there; the registered model is made where it is absent."""
    from mlflow.exceptions import MlflowException

    try:
        target.create_registered_model(name, description=source.get_registered_model(version.name).description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = _tags(source, version) | {"model_id": model_id}
    with _in_use(target.tracking_uri):
        made = target.create_model_version(
            name, f"models:/{model_id}", run_id, tags=tags, description=version.description, model_id=model_id
        )
    return str(made.version)


@contextmanager
def _in_use(uri: str) -> Iterator[None]:
    """Makes a store MLflow's own for a while: the sqlite store looks there for the LoggedModel of a version. MLflow
    keeps its choice in the environment too."""
    import mlflow

    before, named = mlflow.get_tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)
        if named is None:
            os.environ.pop("MLFLOW_TRACKING_URI", None)
