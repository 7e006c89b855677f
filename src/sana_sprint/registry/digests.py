"""The digests of a registered model's files, the code that MLflow runs among them: recorded in the version's tags at
registration, held against the store wherever a version is fetched to be used, copied or audited.

    file_digests         {path in the model's folder: sha256} of everything but evaluation/
    file_digests_sha256  sha256 of that text
    score_digests        the same of evaluation/, which each registration of the same weights brings up to date
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from sana_sprint import storage
from sana_sprint.registry import measured, packed, trust

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlflow.store.artifact.artifact_repo import ArtifactRepository
    from mlflow.tracking import MlflowClient

PIPELINE = "artifacts/pipeline"  # of the registered pyfunc model: the stock diffusers folder
SCORES = "evaluation"  # of it: evaluate's JSON
LIST, SEAL, SCORE_LIST = "file_digests", "file_digests_sha256", "score_digests"
NOTE = "registered_model_meta"  # MLflow's own note of what it read; it writes one into a store on this machine's disk
SHOWN_MAX = 5


def of(folder: Path) -> dict[str, str]:
    """Returns {path: sha256} of a model's files, but evaluation/ and MLflow's note."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: storage.digest(path) for name, path in files.items() if name != NOTE and not _of_scores(name)}


def _of_scores(name: str) -> bool:
    return name.startswith(f"{SCORES}/")


def logged(server: MlflowClient, model_id: str, pipeline: Path, code: Path) -> dict[str, str]:
    """Returns {path: sha256} of a LoggedModel: of pipeline and code as they were sent, of what MLflow wrote beside them
    as the store gives it back."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    location = server.get_logged_model(model_id).artifact_location
    store = get_artifact_repository(location, tracking_uri=server.tracking_uri)
    with tempfile.TemporaryDirectory(prefix="sana-sprint-register-") as place:
        beside = {
            name: storage.digest(Path(store.download_artifacts(name, dst_path=place))) for name in _beside(store, None)
        }
    return (
        beside
        | {f"{PIPELINE}/{name}": digest for name, digest in of(pipeline).items()}
        | {code.name: storage.digest(code)}
    )


def _beside(store: ArtifactRepository, folder: str | None) -> Iterator[str]:
    """Yields the paths of the files outside the pipeline."""
    for entry in store.list_artifacts(folder):
        if not entry.is_dir:
            yield entry.path
        elif entry.path not in (PIPELINE, SCORES):
            yield from _beside(store, entry.path)


def tags(files: Mapping[str, str]) -> dict[str, str]:
    """Returns the tags of a version whose model has these files."""
    return packed.pack(LIST, dict(files)) | {SEAL: _seal(files)}


def _seal(files: Mapping[str, str]) -> str:
    return hashlib.sha256(packed.text(dict(files)).encode()).hexdigest()


def score_tags(known: Mapping[str, str], scores: Path) -> dict[str, str]:
    """Returns the tags that add evaluate's JSON to those of a version."""
    told = packed.unpack(known, SCORE_LIST) or {}
    return packed.pack(SCORE_LIST, told | {f"{SCORES}/{scores.name}": storage.digest(scores)})


def listed(known: Mapping[str, str]) -> dict[str, str]:
    """Returns {path: sha256} as a version's tags list them; {} where they list none, or none that can be read."""
    found = packed.unpack(known, LIST)
    return found if isinstance(found, dict) else {}


def recorded(known: Mapping[str, str]) -> bool:
    """Tells whether a version's tags hold the digests of every file; those of earlier releases do not."""
    return LIST in known or SEAL in known


def faults(folder: Path, known: Mapping[str, str], own_disk: bool, scores: bool) -> list[str]:
    """Returns in words what of a version's files is not as its tags tell. Without a list in them there is the digest of
    the pipeline's folder at most. `own_disk`: in a store on this machine's disk Python may have left what it compiled
    of the model's code. `scores`: evaluation/ too."""
    if not recorded(known):
        return _of_pipeline(folder, known)
    listed = packed.unpack(known, LIST)
    if not isinstance(listed, dict) or _seal(listed) != known.get(SEAL):
        return [f"the list of its files, tag '{LIST}', was changed"]
    found = of(folder)
    if own_disk:
        found = {name: digest for name, digest in found.items() if not trust.compiled(Path(name))}
    if scores:
        listed |= packed.unpack(known, SCORE_LIST) or {}
        found |= {f"{SCORES}/{name}": digest for name, digest in of(folder / SCORES).items()}
    return list(_differences(listed, found))


def _of_pipeline(folder: Path, known: Mapping[str, str]) -> list[str]:
    wanted = known.get(measured.FILES)
    found = storage.digest(folder / PIPELINE) if wanted else None
    return [] if found == wanted else [f"they have the digest {str(found)[:12]}, registered were {str(wanted)[:12]}"]


def _differences(listed: Mapping[str, str], found: Mapping[str, str]) -> Iterator[str]:
    for name in sorted({*listed, *found}):
        if name not in found:
            yield f"{name} is missing"
        elif name not in listed:
            yield f"{name} was not registered"
        elif listed[name] != found[name]:
            yield f"{name} differs"


def told(differing: list[str]) -> str:
    """Returns faults as one text."""
    more = f"; and {len(differing) - SHOWN_MAX} more" if len(differing) > SHOWN_MAX else ""
    return "; ".join(differing[:SHOWN_MAX]) + more
