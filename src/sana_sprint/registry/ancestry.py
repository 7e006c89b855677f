"""Lineage both ways: from a version to what it was made from, and from data to every run and version made from it."""

from __future__ import annotations

import hashlib
import subprocess
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from sana_sprint.registry import lineage, origin, transfer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from dvc.repo import Repo
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

PAGE = 1000
RAW = "data/raw"  # the output that holds the data manifest


def of_version(server: MlflowClient, version: ModelVersion) -> dict[str, Any]:
    """Returns where a version comes from: code, data, the profile, the runs of its stages with the parameters and the
    machine of each, the machine that registered it, digests; of one that came from other registries, each of these and
    the moves of their histories that name it, oldest first."""
    tags = version.tags
    came = {"from": transfer.listed(tags, transfer.ORIGIN), "past": transfer.listed(tags, transfer.PAST)}
    return {
        "version": f"{version.name} version {version.version}",
        "made": tags.get("made", "by this pipeline"),
        "weights_sha256": tags.get("weights_digest", "not recorded"),
        "sampling_sha256": tags.get("sampling_digest", "not recorded"),
        "protocol_sha256": tags.get("protocol_digest", "not recorded"),
        "code": {"git_commit": tags.get("git_commit", "none"), "changed": tags.get("git_dirty", "unknown")},
        "data": {
            "manifest_sha256": tags.get(lineage.DATA_DIGEST, "none"),
            "outputs": lineage.read(tags, origin.MADE_FROM),
        },
        "parameters": {"profile": tags.get("profile", "none")},
        "runs": lineage.runs_behind(server, tags),
        "made_on": lineage.read(tags, origin.MADE_ON),
        "requirements_lock_sha256": tags.get("environment_digest", "not recorded"),
    } | ({"transferred": came} if came["from"] else {})


def in_words(told: dict[str, Any]) -> dict[str, Any]:
    """Returns what `of_version` tells with each machine, registry and move in one line, for a tree that one reads."""
    runs = {
        stage: one | ({"made_on": origin.machine_told(one["made_on"])} if "made_on" in one else {})
        for stage, one in told["runs"].items()
    }
    told = told | {"runs": runs, "made_on": origin.machine_told(told["made_on"])}
    if came := told.get("transferred"):
        lines = [f"{one['version']} of {one['store']}, by {one['by']}, {one['at']}" for one in came["from"]]
        told["transferred"] = {"from": _numbered(lines), "moves": _numbered([_move(one) for one in came["past"]])}
    return told


def _numbered(lines: list[str]) -> dict[str, str]:
    return {str(number): line for number, line in enumerate(lines, 1)}


def _move(event: Mapping[str, Any]) -> str:
    """Returns a move in words; those of before there were entries, or one registry to come through, lack some."""
    told = {"from": "none", "to": "none", "user": "unknown", "at": "unknown", "store": "unknown"}
    told |= {key: value for key, value in event.items() if value is not None}
    entry = f"entry {event['entry']} there" if "entry" in event else "before there were entries"
    return "{action} {from} -> {to} in {store}, by {user}, {at}".format(**told) + f" ({entry})"


def uses(server: MlflowClient, digest: str) -> dict[str, list[dict[str, Any]]]:
    """Returns the runs and the versions that an output of this digest stands above, newest first."""
    experiments = [one.experiment_id for one in server.search_experiments()]
    runs = [
        run
        for run in found_runs(server, experiments, digest)
        if digest in lineage.read(run.data.tags, origin.MADE_FROM).values()
    ]
    made = [one for one in every_version(server) if digest in lineage.read(one.tags, origin.MADE_FROM).values()]
    return {
        "runs": [
            {"run": run.info.run_id, "name": run.info.run_name, "status": run.info.status, **commit(run.data.tags)}
            for run in runs
        ],
        "versions": [
            {"name": one.name, "version": str(one.version), "aliases": list(one.aliases), **commit(one.tags)}
            for one in sorted(made, key=lambda one: (one.name, -int(one.version)))
        ],
    }


def commit(tags: Mapping[str, str]) -> dict[str, str]:
    """Returns the git commit of a run or version."""
    return {"git_commit": tags.get("git_commit", "none")}


def uses_of_manifest(server: MlflowClient, sha256: str) -> dict[str, list[dict[str, Any]]]:
    """Returns what `uses` does for the data whose manifest has this sha256, by the versions that name it."""
    versions = [one for one in every_version(server) if one.tags.get(lineage.DATA_DIGEST) == sha256]
    raw = {made[RAW] for made in (lineage.read(one.tags, origin.MADE_FROM) for one in versions) if RAW in made}
    found = [uses(server, digest) for digest in sorted(raw)]
    return {kind: [one for each in found for one in each[kind]] for kind in ("runs", "versions")}


def found_runs(server: MlflowClient, experiments: list[str], digest: str) -> list[Run]:
    """Returns all runs whose tag origin.MADE_FROM names the digest."""
    found: list[Run] = []
    token = None
    while True:
        page = server.search_runs(
            experiments,
            filter_string=f"tags.{origin.MADE_FROM} LIKE '%{digest}%'",
            order_by=["attributes.start_time DESC"],
            max_results=PAGE,
            page_token=token,
        )
        found += page
        token = page.token
        if not token:
            return found


def every_version(server: MlflowClient) -> list[ModelVersion]:
    """Returns the versions of all registered models."""
    found: list[ModelVersion] = []
    token = None
    while True:
        page = server.search_model_versions(max_results=PAGE, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def committed(root: Path, version: ModelVersion) -> dict[str, str]:
    """Returns the commit of this repository from which a version's data can be had, the first whose dvc.lock holds
    them all, and the sha256 of that dvc.lock; `none` where there is none. A version is registered before its dvc.lock
    is committed, so that the commit of its tag is the one before."""
    commit = holding(root, lineage.read(version.tags, origin.MADE_FROM)) if (root / ".git").exists() else None
    if commit is None:
        return {"git_commit": "none"}
    lock = subprocess.run(["git", "show", f"{commit}:dvc.lock"], cwd=root, capture_output=True, check=True).stdout
    return {"git_commit": commit, "dvc_lock_sha256": hashlib.sha256(lock).hexdigest()}


def checkout(root: Path, version: ModelVersion) -> str:
    """Puts code and data of the repository back to where a version was made, and returns the commit: the first whose
    dvc.lock holds the version's data. Raises ValueError, with code and data as they were, when the working tree has
    changes or data that DVC has not saved, when no commit holds the version's, or when they are neither in DVC's cache
    nor its remote."""
    if git(root, "status", "--porcelain", "--untracked-files=no"):
        raise ValueError(f"{root}: the working tree has changes; commit or stash them first")
    made = lineage.read(version.tags, origin.MADE_FROM)
    commit = holding(root, made)
    if commit is None:
        called = f"{version.name} version {version.version}"
        raise ValueError(
            f"{called}: no commit of this repository has a dvc.lock with its outputs; it was registered at commit "
            f"{version.tags.get('git_commit', 'none')}, and dvc.lock was not committed after it"
        )
    fetch(root, commit)
    branch, before = git(root, "rev-parse", "--abbrev-ref", "HEAD"), git(root, "rev-parse", "HEAD")
    git(root, "checkout", "--quiet", commit)
    try:
        restore(root)
    except ValueError:
        git(root, "checkout", "--quiet", before if branch == "HEAD" else branch)
        with suppress(ValueError):
            restore(root)
        raise
    return commit


def holding(root: Path, made: Mapping[str, str]) -> str | None:
    """Returns the oldest commit whose dvc.lock has all these data, or None."""
    student = next((digest for path, digest in made.items() if path.startswith("data/models/student/")), None)
    if student is None:
        return None
    commits = git(root, "log", "--all", "--reverse", "--format=%H", "-S", student, "--", "dvc.lock").split()
    for commit in commits:
        known = origin.digests(origin.parsed(git(root, "show", f"{commit}:dvc.lock")))
        if all(known.get(path) == digest for path, digest in made.items()):
            return commit
    return None


@contextmanager
def dvc(root: Path) -> Iterator[Repo]:
    """Yields the DVC repository of `root`, whose errors become ValueError."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            yield repo
    except DvcException as error:
        raise ValueError(f"{root}: {' '.join(str(error).split()):.500}") from None


def fetch(root: Path, commit: str) -> None:
    """Brings what DVC's cache lacks of a commit's data, and of those in the working tree, from its remote. Raises
    ValueError naming what of the commit is in neither."""
    with dvc(root) as repo:
        repo.fetch(revs=[commit], workspace=True)
        of_commit = (out for _ in repo.brancher(revs=[commit], workspace=False) for out in repo.index.outs)
        absent = sorted({str(out) for out in of_commit if out.use_cache and out.hash_info and out.changed_cache()})
    if absent:
        told = ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
        raise ValueError(
            f"{root}: data of commit {commit[:12]} are neither in DVC's cache nor its remote ({told}), so nothing was "
            "changed; bring them there by `dvc push` from where they are"
        )


def restore(root: Path) -> None:
    """Brings the outputs of dvc.lock from DVC's cache into the working tree, where none is lost that is not saved, and
    removes those that DVC put there for another. Outputs of stages that were never run are in no dvc.lock: DVC fails
    over them unless it is told what to bring, and then leaves the removing to its caller."""
    with dvc(root) as repo:
        known = [out.fs_path for out in repo.index.outs]
        repo.state.remove_links(repo.state.get_unused_links(known, repo.fs), repo.fs)
        if made := [out.fs_path for out in repo.index.outs if out.use_cache and out.hash_info]:
            repo.checkout(targets=made)


def git(root: Path, *words: str) -> str:
    """Returns the output of a git command. Raises ValueError with git's words when it fails."""
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"git {' '.join(words[:2])}: {' '.join(done.stderr.split()):.300}")
    return done.stdout.strip()
