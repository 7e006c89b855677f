"""The MLflow store: its address, a client of it, and the one line that says why it cannot be used.

MLflow is imported when a client is made. The store is MLFLOW_TRACKING_URI, else sqlite in data/mlflow of the
repository, with the artefacts beside the database.
"""

from __future__ import annotations

import functools
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sana_sprint.registry import lineage

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

FOLDER = Path("data/mlflow")
PROBE_TIMEOUT_S = 5.0
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


def tracking_uri(root: Path | None = None) -> str:
    """Returns MLFLOW_TRACKING_URI, or the URI of the sqlite store of the repository at `root` (found from the
    current folder when None).
    """
    chosen = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    return chosen or f"sqlite:///{(root or lineage.repository()) / FOLDER / 'mlflow.db'}"


def shown(uri: str) -> str:
    """Returns a URI without the user and password it may carry."""
    scheme, mark, rest = uri.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"


def unreachable(uri: str, reason: object) -> ValueError:
    """Returns the error of a tracking store that cannot be used: its address, the reason and the remedy."""
    if "error code 401" in str(reason):
        remedy = "user or password is wrong: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        reason = "401, not authenticated"
    elif uri.startswith("http"):
        remedy = "start it with `make ui` or check the address, or unset MLFLOW_TRACKING_URI to use data/mlflow"
    else:
        remedy = "check that its folder can be written, or set MLFLOW_TRACKING_URI to another store"
    return ValueError(f"tracking server {shown(uri)} cannot be used ({one_line(reason):.300}): {remedy}")


def one_line(message: object) -> str:
    """Returns a message without its line breaks."""
    return " ".join(str(message).split())


def _probe(uri: str) -> None:
    """Raises ValueError when nobody listens at an http(s) address; MLflow's own retries take minutes."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=PROBE_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise unreachable(uri, error) from None


@functools.lru_cache(maxsize=4)
def client(uri: str) -> MlflowClient:
    """Returns a client of the store at `uri`; makes the folder of a sqlite store. Raises ValueError when it
    cannot be used.
    """
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    _probe(uri)
    try:
        if uri.startswith("sqlite:///"):
            artifact_root(uri).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unreachable(uri, error) from None
    import logging

    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    for chatty in ("alembic", "mlflow.store.db.utils", "mlflow.pyfunc"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        made = MlflowClient(tracking_uri=uri)
        made.get_experiment_by_name("Default")
    except MlflowException as error:
        raise unreachable(uri, error) from None
    return made


def artifact_root(uri: str) -> Path:
    """Returns the folder of the artefacts of a sqlite store: `artifacts` beside the database file."""
    return Path(uri.removeprefix("sqlite:///")).absolute().parent / "artifacts"


def experiment(mlflow: MlflowClient, uri: str, profile: str) -> str:
    """Returns the id of the experiment `sana-sprint-<profile>`, made if it is absent."""
    from mlflow.exceptions import MlflowException

    name = f"sana-sprint-{profile}"
    found = mlflow.get_experiment_by_name(name)
    if found is None:
        place = artifact_root(uri).as_uri() if uri.startswith("sqlite:///") else None
        try:
            return str(mlflow.create_experiment(name, artifact_location=place))
        except MlflowException:
            found = mlflow.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise ValueError(f"experiment {name} is deleted in {shown(uri)}: restore it with `mlflow experiments restore`")
    return str(found.experiment_id)
