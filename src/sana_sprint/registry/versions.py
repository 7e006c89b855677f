"""Versions of a registered model: which one an alias, a number or a models:/ address means, and where its files are."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from sana_sprint.registry import digests, shared_files, store, trust

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow.entities import FileInfo
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repo import ArtifactRepository
    from mlflow.tracking import MlflowClient

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"
PIPELINE = digests.PIPELINE
ABSENT = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")
FAULT_LENGTH_MAX = 300
FORBIDDEN = 403  # what a server with users also says of a model that is not there


def version_of(server: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """Returns the version that an alias points to, or None when the model or the alias is not there."""
    from mlflow.exceptions import MlflowException

    try:
        return server.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ABSENT or hidden(server, name, error):
            return None
        raise


def hidden(server: MlflowClient, name: str, error: MlflowException) -> bool:
    """Tells whether a server with users refuses a model because it has none of this name that this user may see."""
    return error.get_http_status_code() == FORBIDDEN and not server.search_registered_models(f"name = '{name}'")


def numbered(server: MlflowClient, name: str, number: str) -> ModelVersion | None:
    """Returns a version by its number, or None when the model or the version is not there."""
    from mlflow.exceptions import MlflowException

    try:
        return server.get_model_version(name, number)
    except MlflowException as error:
        if error.error_code in ABSENT or hidden(server, name, error):
            return None
        raise


def find(server: MlflowClient, name: str, number: str | None) -> ModelVersion:
    """Returns a version by number, else the challenger. Raises ValueError naming what is missing."""
    if number is None:
        found = version_of(server, name, CHALLENGER)
        if found is None:
            raise ValueError(f"{name}: no version has the alias '{CHALLENGER}'; run `dvc repro register` first")
        return found
    found = numbered(server, name, number)
    if found is None:
        raise ValueError(f"{name}: there is no version {number}; {known(server, name)}")
    return found


def known(server: MlflowClient, name: str) -> str:
    """Returns in words which versions of a model there are."""
    numbers = sorted((int(version.version) for version in every(server, name)), reverse=True)
    shown = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    return f"there are: {shown}" if numbers else "the model has none; run `dvc repro register` first"


def every(server: MlflowClient, name: str) -> list[ModelVersion]:
    """Returns all versions of a model that are not deleted, by number; [] when there is no such model."""
    found: list[ModelVersion] = []
    token = None
    while True:
        page = server.search_model_versions(f"name = '{name}'", page_token=token)
        found += page
        token = page.token
        if not token:
            return sorted(found, key=lambda version: int(version.version))


def resolve(server: MlflowClient, uri: str) -> ModelVersion:
    """Returns the version of models:/name@alias or models:/name/number. Raises ValueError naming what is not there."""
    name, at, alias = uri.removeprefix("models:/").partition("@")
    if at:
        found = version_of(server, name, alias)
        if found is None:
            raise ValueError(f"{uri}: no version of {name} has the alias '{alias}'; {known(server, name)}")
        return found
    name, _, number = name.partition("/")
    if not uri.startswith("models:/") or not number.isdigit():
        raise ValueError(f"{uri}: name a version as models:/name@alias or models:/name/number")
    return find(server, name, number)


def root(server: MlflowClient, version: ModelVersion) -> str:
    """Returns the address of a version's files in its artefact store."""
    return str(server.get_model_version_download_uri(version.name, str(version.version)))


def fault(server: MlflowClient, version: ModelVersion) -> str | None:
    """Returns in words why a version's files cannot be used, or None when the store lists all that were registered."""
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    place = root(server, version)
    try:
        there = get_artifact_repository(place, tracking_uri=server.tracking_uri)
        names = {file.path for file in _files(there, None)}
    except (MlflowException, OSError) as error:
        return f"{store.shown(place)}: {store.one_line(error):.{FAULT_LENGTH_MAX}}"
    index = f"{PIPELINE}/model_index.json"
    if index not in names:
        return f"{store.shown(place)}/{PIPELINE}: no model_index.json there"
    gone = [f"no {name} there" for name in sorted(digests.listed(version.tags).keys() - names)]
    return f"{store.shown(place)}: {digests.told(gone)}" if gone else None


def fetched(server: MlflowClient, version: ModelVersion, place: Path | None = None, scores: bool = False) -> Path:
    """Returns the folder of a version's model, downloaded below `place`. When that is None, one on a disk of this
    machine is read where it lies, any other goes to a folder that is removed when this process ends. Raises ValueError
    when its files are gone, and naming those that must not be in a model or are not as they were registered; with
    `scores` evaluate's JSON counts too."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    called, address = f"{version.name} version {version.version}", root(server, version)
    gone = fault(server, version)
    if gone is not None:
        raise ValueError(f"{called}: its files are gone ({gone})")
    disk = shared_files.local(address)
    if place is None and disk is None:
        place = _of_this_process()
    if place is not None:
        place.mkdir(parents=True, exist_ok=True)
    try:
        _check_stored(server, address, called) if disk is None else trust.check(disk, called, registered=True)
        below = None if place is None else str(place)
        path = Path(download_artifacts(address, dst_path=below, tracking_uri=server.tracking_uri))
    except (MlflowException, OSError) as error:
        reason = f"{store.one_line(error):.{FAULT_LENGTH_MAX}}"
        raise ValueError(f"{called}: its files cannot be read ({reason})") from None
    if disk is None:
        trust.check(path, called, registered=True)
    if changed := digests.faults(path, version.tags, disk is not None, scores):
        raise ValueError(f"{called}: its files are not as they were registered: {digests.told(changed)}")
    return path


def _of_this_process() -> Path:
    """Returns a new folder that is removed when the process ends."""
    made = Path(tempfile.mkdtemp(prefix="sana-sprint-version-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def _check_stored(server: MlflowClient, address: str, called: str) -> None:
    """Raises ValueError naming the files of a store that are too big for this machine, before any is fetched."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    files = _files(get_artifact_repository(address, tracking_uri=server.tracking_uri), None)
    if faults := [f"{file.path}: {why}" for file in files if (why := trust.oversized(file.file_size or 0))]:
        raise trust.refusal(faults, called)


def _files(store: ArtifactRepository, folder: str | None) -> Iterator[FileInfo]:
    """Yields what a store says of every file below a folder of it."""
    for entry in store.list_artifacts(folder):
        if entry.is_dir:
            yield from _files(store, entry.path)
        else:
            yield entry
