"""Registration: a distilled student becomes a version of an MLflow model, once per set of weights, as
`challenger`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sana_sprint import config, storage
from sana_sprint.registry import (
    card,
    dashboard,
    digests,
    lineage,
    measured,
    origin,
    package,
    shared_files,
    store,
    track,
    trust,
    versions,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mlflow.tracking import MlflowClient

    from sana_sprint.config import PartLicences, Register

UNSCORED_EXAMPLE = "a red circle"  # of a student that was registered without scores
ELSEWHERE = "elsewhere"  # tag `made` of a student that another repository made
TOLD = ("prepare.", "prune.sizes.", "prune.healing.steps", "distill.")  # params that the card tells


def model_name(params: Register, size: str) -> str:
    """Returns the name of the registered model of a size."""
    return f"{params.model_name}-{size}"


def existing(server: MlflowClient, name: str, identity: Mapping[str, str]) -> str | None:
    """Returns the newest version of `name` with these digests of weights and sampling, or None."""
    wanted = " and ".join(f"tags.{key} = '{value}'" for key, value in identity.items())
    found = server.search_model_versions(f"name = '{name}' and {wanted}")
    return max((str(version.version) for version in found), key=int, default=None)


def _record_scores(server: MlflowClient, run_id: str, model_id: str, evaluation: Mapping[str, Any]) -> None:
    """Records the scores and latencies as metrics of the LoggedModel, under the names that evaluate's run has."""
    from mlflow.entities import Metric

    now_ms = int(time.time() * 1000)
    told = lineage.numbers(dashboard.scores(evaluation))
    metrics = [Metric(key, value, now_ms, 0, model_id=model_id, run_id=run_id) for key, value in told.items()]
    for start in range(0, len(metrics), track.METRICS_PER_BATCH):
        server.log_batch(run_id, metrics=metrics[start : start + track.METRICS_PER_BATCH])


def _trained(server: MlflowClient, run_ids: Mapping[str, str], profile: Mapping[str, Any]) -> dict[str, str]:
    """Returns the params of the stages behind the model that its card tells: those recorded, else the profile's, by
    which DVC's cache gave the model where this store knows no run of its stages."""
    params = lineage.texts(profile)
    for run_id in run_ids.values():
        params |= server.get_run(run_id).data.params
    return {key: value for key, value in sorted(params.items()) if key.startswith(TOLD)}


def _example(evaluation: Mapping[str, Any]) -> str:
    """Returns the first prompt that was scored, as the input example."""
    prompts = evaluation["protocol"].get("prompts", [])
    return str(prompts[0]["caption"]) if prompts else UNSCORED_EXAMPLE


def _checked(student: Path, scores: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns evaluate's JSON, and sampling.json with the times that were evaluated. Raises ValueError for what is
    missing."""
    evaluation, sampling = storage.read_json(scores), storage.read_json(student / "sampling.json")
    absent = [key for key in ("protocol", "protocol_digest", "size", "times", "scores") if key not in evaluation]
    if absent:
        raise ValueError(f"{scores}: keys {absent} are missing; run `dvc repro evaluate` again")
    measured.checked_protocol(evaluation, scores)
    if not (student / "model_index.json").is_file():
        raise ValueError(f"{student}: no model_index.json, so no diffusers pipeline; run `dvc repro distill` again")
    return evaluation, sampling | {"times": evaluation["times"]}


@dataclass(frozen=True)
class Student:
    """What is registered under `name`: a pipeline folder, evaluate's JSON and its file if there is one, how it is
    sampled, and what the card and the version's tags say of where it comes from."""

    folder: Path
    name: str
    evaluation: dict[str, Any]
    scores: Path | None
    sampling: dict[str, Any]
    licence: str
    description: str
    made: dict[str, str]
    trained: dict[str, str]
    licence_link: str | None
    part_licences: PartLicences
    told: dict[str, str] = field(default_factory=dict)  # sections of the card in the words of who registers it

    @property
    def elsewhere(self) -> bool:
        """Whether it was made outside this repository, whose data and machine are then no part of its lineage."""
        return self.made.get("made") == ELSEWHERE


def register(student: Path, scores: Path, params: Register, run: track.Run) -> dict[str, Any]:
    """Returns the registration of a student that this pipeline made; see `enter`."""
    evaluation, sampling = _checked(student, scores)
    root, server, size = lineage.repository(), store.client(run.uri), evaluation["size"]
    profile = config.read(_profile_file(root))
    run_ids = lineage.run_ids(server, run.run_id, size, profile, root)
    made = lineage.git_tags(root) | lineage.digests(root) | run_ids | {"profile": config.profile(root)}
    made |= {"run_parent": run.parent_id, "run_register": run.run_id}
    name, trained = model_name(params, size), _trained(server, run_ids, profile)
    licences = params.licence, params.description, made, trained, params.licence_link, params.part_licences
    return enter(Student(student, name, evaluation, scores, sampling, *licences), run)


def enter(student: Student, run: track.Run) -> dict[str, Any]:
    """Returns the registration: model name, version, whether it is new, URI, digests and lineage. Weights
    that are registered already with the same sampling get no second version; their scores and the alias
    `challenger` are brought up to date.
    """
    server, name, evaluation = store.client(run.uri), student.name, student.evaluation
    identity = {
        "weights_digest": storage.digest(student.folder, without=trust.HUB_CACHE),
        "sampling_digest": storage.digest_of(student.sampling),
    }
    tags = measured.score_tags(evaluation) | {"licence": student.licence} | identity
    details = measured.detail_tags(evaluation)
    version = existing(server, name, identity)
    known = version is not None
    if version is None:
        details, model_id = _logged(student, tags, details, run)
        tags |= details | student.made | {"model_id": model_id}
        version = _new_version(server, name, model_id, tags, student.description, run)
    else:
        for key, value in (tags | details | _folder_tags(server, name, version)).items():
            server.set_model_version_tag(name, version, key, value)
    there = server.get_model_version(name, version)
    _record_scores(server, run.run_id, there.tags["model_id"], evaluation)
    server.set_tag(run.run_id, dashboard.REGISTERED, f"{name}/{version}")
    if not known or dashboard.REGISTERED_BY in (there.description or ""):  # what people write instead stays
        note = dashboard.version_note(student.description, evaluation, server.get_run(run.run_id), run.parent_id)
        server.update_model_version(name, version, note)
    if student.scores:
        server.log_model_artifact(there.tags["model_id"], str(student.scores), digests.SCORES)
        for key, value in digests.score_tags(there.tags, student.scores).items():
            server.set_model_version_tag(name, version, key, value)
    server.set_registered_model_alias(name, versions.CHALLENGER, version)
    lists = (digests.LIST, digests.SCORE_LIST)
    long = {key for key in there.tags if key in {measured.SCORES, *details} or key.startswith(lists)}
    keep = {key: value for key, value in there.tags.items() if key not in long}
    called = {"name": name, "version": int(version), "uri": f"models:/{name}/{version}", "alias": versions.CHALLENGER}
    return called | {"new": not known, "model_id": there.tags["model_id"], "tags": keep}


def _logged(
    student: Student, tags: dict[str, str], details: dict[str, str], run: track.Run
) -> tuple[dict[str, str], str]:
    """Returns the tags that the registered folder adds to `details`, and the id of the LoggedModel that holds it."""
    from sana_sprint.registry import shared_objects

    root = lineage.repository()
    text = card.write(student)
    with package.with_card(
        student.folder, text, student.sampling, package.staging(root, student.name) / "pipeline"
    ) as folder:
        trust.check(folder)
        details = details | measured.folder_tags(folder)
        details |= {} if student.elsewhere else origin.version_tags(root, student.evaluation["size"])
        with shared_objects.copies():
            model_id = package.log_model(
                folder, _example(student.evaluation), student.sampling, tags | student.made, run
            )
            server = store.client(run.uri)
            details |= digests.tags(digests.logged(server, model_id, folder, root / package.MODEL_CODE))
    shared_files.link_version(str(server.get_logged_model(model_id).artifact_location))
    return details, model_id


def _profile_file(root: Path) -> Path:
    return root / "profiles" / f"{config.profile(root)}.yaml"


def _folder_tags(server: MlflowClient, name: str, number: str) -> dict[str, str]:
    """Returns the tags of the folder of a version that was registered before there were such tags."""
    version = versions.find(server, name, number)
    known = measured.FILES in version.tags
    return {} if known else measured.folder_tags(versions.fetched(server, version) / versions.PIPELINE)


def _new_version(
    server: MlflowClient, name: str, model_id: str, tags: dict[str, str], description: str, run: track.Run
) -> str:
    """Returns the number of a new version, whose tags are there from its first moment."""
    from mlflow.exceptions import MlflowException

    try:
        server.create_registered_model(name, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"models:/{model_id}"
    made = server.create_model_version(name, source, run.run_id, tags=tags, description=description, model_id=model_id)
    return str(made.version)
