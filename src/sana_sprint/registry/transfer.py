"""Transfer: a version goes from one registry to another (dev -> staging -> prod) with its files, card, lineage, scores
and past.

The files are read back from the new store and their digests compared before the version is made, so a version that is
there is whole. What the aliases and the histories of the registries before say is told in tags; the new one has its
own. Two tags are lists that every transfer makes longer:

    transferred.from    {"store", "version", "by", "at"} of every registry that it came through, the first one first
    transferred.past    the entries of their histories that name it, each with its "store", in the same order

The runs behind it stay where they are; transferred.runs tells of them what lineage told there.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sana_sprint import config, storage
from sana_sprint.registry import (
    digests,
    history,
    lineage,
    measured,
    moves,
    packed,
    shared_files,
    store,
    target,
    versions,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

PAST, ORIGIN = "transferred.past", "transferred.from"
# Prefixes of tags that are not copied as they are.
OF_ITS_STORE = (moves.MARK, "mlflow.", "model_id", PAST, ORIGIN, lineage.RUNS)
OF_ITS_FILES = (digests.LIST, measured.FILES, measured.BYTES, measured.CARD)  # which were made with a version
IDENTITY = (measured.WEIGHTS, "sampling_digest")


@dataclass(frozen=True)
class Sent:
    """A version as the registry that it leaves tells of it: the tags that mean something elsewhere, the registries that
    it came through, this one the last, and its past in them."""

    version: ModelVersion
    root: str
    model_description: str | None
    tags: dict[str, str]
    origins: list[dict[str, Any]]
    past: list[dict[str, Any]]

    @property
    def came(self) -> str:
        """Where it comes from, in words."""
        return f"{self.origins[-1]['store']} {self.origins[-1]['version']}"

    def tags_after(self, there: Mapping[str, str]) -> dict[str, str]:
        """Returns the tags of the version there, whose tags so far may know of other ways that it came."""
        origins, past = listed(there, ORIGIN), listed(there, PAST)
        known = {_place(one) for one in origins}
        origins += [one for one in self.origins if _place(one) not in known]
        past += [event for event in self.past if event not in past]
        return self.tags | packed.pack(ORIGIN, origins) | packed.pack(PAST, past)


def transfer(
    source: MlflowClient, uri: str, to: str, name: str | None = None, alias: str = versions.CHALLENGER
) -> dict[str, Any]:
    """Returns the transfer to the store at `to`: the version here, the version there, and whether it is new. Files of
    the same digests are not copied twice. The version there gets `alias`. Raises ValueError naming what is missing or
    was not copied whole.
    """
    if alias in (versions.CHAMPION, versions.PREVIOUS):
        raise ValueError(f"a transfer does not set '{alias}': `sana-sprint promote` there judges the version")
    try:
        called = None if name is None else config.registrable(name)
    except ValueError as error:
        raise ValueError(f"--name {name!r}: {error}") from None
    version = versions.resolve(source, uri)  # before the other store is opened, or made
    called, sent = called or version.name, _sent(source, version)
    with target.spoken_to(to):
        there = store.client(to)
        known = existing(there, called, version)
        if known is not None:
            _whole_there(there, known)
    number = _copied(source, sent, there, called) if known is None else str(known.version)
    if known is not None:
        _scores_again(source, sent, there, known)
    with target.spoken_to(to):
        tags = sent.tags_after(there.get_model_version(called, number).tags)
        for key, value in tags.items():
            if known is None or not key.startswith(OF_ITS_FILES):
                there.set_model_version_tag(called, number, key, value)
        there.set_registered_model_alias(called, alias, number)
    return {
        "from": {"store": store.shown(source.tracking_uri), "name": version.name, "version": str(version.version)},
        "to": {"store": store.shown(to), "name": called, "version": number, "alias": alias},
        "new": known is None,
        "weights_digest": version.tags.get(measured.WEIGHTS),
        "entries": len(listed(tags, PAST)),
    }


def listed(tags: Mapping[str, str], key: str) -> list[dict[str, Any]]:
    """Returns the list that tags hold, [] where there is none; one thing, as the tags held once, is a list of one."""
    found = packed.unpack(tags, key)
    return found if isinstance(found, list) else [found] if isinstance(found, dict) else []


def _place(origin: dict[str, Any]) -> tuple[str, str]:
    return str(origin.get("store")), str(origin.get("version"))


def existing(server: MlflowClient, name: str, version: ModelVersion) -> ModelVersion | None:
    """Returns the newest version there with the same weights and sampling, or None."""
    mine = {key: version.tags.get(key) for key in IDENTITY}
    if mine[measured.WEIGHTS] is None:
        raise ValueError(
            f"{version.name} version {version.version} has no tag '{measured.WEIGHTS}', so nothing tells whether it is "
            "there already; register it again with `dvc repro --force --single-item register@SIZE`"
        )
    same = [one for one in versions.every(server, name) if {key: one.tags.get(key) for key in IDENTITY} == mine]
    return same[-1] if same else None


def _sent(source: MlflowClient, version: ModelVersion) -> Sent:
    """Returns what is told of a version where it goes."""
    number, place = str(version.version), store.shown(source.tracking_uri)
    came = {"store": place, "version": f"models:/{version.name}/{number}", "by": history.who(), "at": history.now()}
    events = history.read(source, version.name).events()
    here = [event | {"store": place} for event in events if number in (event["from"], event["to"])]
    tags = {key: value for key, value in version.tags.items() if not key.startswith(OF_ITS_STORE)}
    return Sent(
        version=version,
        root=versions.root(source, version),
        model_description=source.get_registered_model(version.name).description,
        tags=tags | packed.pack(lineage.RUNS, lineage.runs_behind(source, version.tags)),
        origins=[*listed(version.tags, ORIGIN), came],
        past=[*listed(version.tags, PAST), *here],
    )


def _copied(source: MlflowClient, sent: Sent, there: MlflowClient, name: str) -> str:
    """Returns the number of the new version, made once its files are there."""
    version = sent.version
    with tempfile.TemporaryDirectory(prefix="sana-sprint-transfer-") as place:
        folder = _whole(source, version, Path(place) / "out")
        digest = storage.digest(folder)
        model_id, run_id = _uploaded(sent, there, folder)
        with target.spoken_to(there.tracking_uri):
            _verify(there, model_id, digest, Path(place) / "back")
            return _version(sent, there, name, model_id, run_id)


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


def _uploaded(sent: Sent, there: MlflowClient, folder: Path) -> tuple[str, str]:
    """Returns the ids of the LoggedModel there and of the run that made it."""
    from sana_sprint.registry import shared_objects

    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # --json prints one JSON
    uri, status = there.tracking_uri, "FAILED"
    label = f"transfer {sent.version.name} {sent.version.version}"
    with shared_objects.copies(sent.root), target.spoken_to(uri):  # the target's key goes to what copies
        experiment = store.experiment(there, uri, sent.version.tags.get("profile", "transfer"))
        tags = {"kind": "transfer", ORIGIN: sent.came}
        run_id = str(there.create_run(experiment, run_name=label, tags=tags).info.run_id)
        try:
            model = there.create_logged_model(experiment, "student", source_run_id=run_id, tags={ORIGIN: sent.came})
            there.log_model_artifacts(model.model_id, str(folder))
            there.finalize_logged_model(model.model_id, "READY")
            status = "FINISHED"
        finally:
            there.set_terminated(run_id, status)
    return str(model.model_id), run_id


def _verify(there: MlflowClient, model_id: str, digest: str, place: Path) -> None:
    """Reads the files back. Raises ValueError when they are not those that were sent."""
    from mlflow.artifacts import download_artifacts

    place.mkdir()
    location = there.get_logged_model(model_id).artifact_location
    back = Path(download_artifacts(location, dst_path=str(place), tracking_uri=there.tracking_uri))
    if storage.digest(back) != digest:
        where = store.shown(there.tracking_uri)
        raise ValueError(f"{where}: the files of model {model_id} are not those that were sent; no version was made")


def _whole_there(there: MlflowClient, known: ModelVersion) -> None:
    """Reads the files of a version that is there already. Raises ValueError where they are gone, or are not those that
    were registered."""
    own_disk = shared_files.local(versions.root(there, known)) is not None
    with tempfile.TemporaryDirectory(prefix="sana-sprint-transfer-") as place:
        try:
            versions.fetched(there, known, None if own_disk else Path(place))
        except ValueError as error:
            where = store.shown(there.tracking_uri)
            raise ValueError(
                f"{error}; this is the version of {where} with the same weights, so nothing was copied: delete it "
                "there and transfer again"
            ) from None


def _scores_again(source: MlflowClient, sent: Sent, there: MlflowClient, known: ModelVersion) -> None:
    """Copies evaluate's JSON to a version that is there already, where it is another one. Raises ValueError where it is
    not as it was registered."""
    from mlflow.artifacts import download_artifacts

    mine, its = (packed.unpack(one.tags, digests.SCORE_LIST) for one in (sent.version, known))
    if mine is None or mine == its:
        return
    address = f"{sent.root}/{digests.SCORES}"
    with tempfile.TemporaryDirectory(prefix="sana-sprint-transfer-") as place:
        folder = Path(download_artifacts(address, dst_path=place, tracking_uri=source.tracking_uri))
        if {f"{digests.SCORES}/{name}": digest for name, digest in digests.of(folder).items()} != mine:
            raise ValueError(f"{address}: not as it was registered, so nothing was copied")
        with target.spoken_to(there.tracking_uri):
            there.log_model_artifacts(known.tags["model_id"], str(folder), digests.SCORES)


def _version(sent: Sent, there: MlflowClient, name: str, model_id: str, run_id: str) -> str:
    """Returns the number of the new version there; the registered model is made where it is absent."""
    from mlflow.exceptions import MlflowException

    try:
        there.create_registered_model(name, description=sent.model_description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags, description = sent.tags_after({}) | {"model_id": model_id}, sent.version.description
    with _in_use(there.tracking_uri):
        made = there.create_model_version(
            name, f"models:/{model_id}", run_id, tags=tags, description=description, model_id=model_id
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
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        if named is not None:
            os.environ["MLFLOW_TRACKING_URI"] = named
