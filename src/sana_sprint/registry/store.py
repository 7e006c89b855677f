"""The MLflow store: its address, a client of it, and the one line that says why it cannot be used.

MLflow is imported when a client is made. The store is MLFLOW_TRACKING_URI, else sqlite in data/mlflow of the
repository, with the artefacts beside the database.
"""

from __future__ import annotations

import functools
import math
import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from sana_sprint.registry import dashboard, lineage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlflow.tracking import MlflowClient

FOLDER = Path("data/mlflow")
T = TypeVar("T")
PROBE_TIMEOUT_S = 5.0
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}  # of schemes without one
WAIT_DEFAULT_S = 120.0  # SANA_SPRINT_TRACKING_WAIT_S
RETRY_FIRST_S, RETRY_MAX_S = 0.5, 15.0
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
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


class Away(ValueError):  # noqa: N818  a state, not a mistake
    """A tracking store that does not answer now and may later."""


def unreachable(uri: str, reason: object) -> ValueError:
    """Returns the error of a tracking store that cannot be used: its address, the reason and the remedy. It is `Away`
    where waiting may help.
    """
    kind: type[ValueError] = Away if uri.startswith("http") and is_away(reason) else ValueError
    if _status(reason) in (401, 403):
        why = "user or password is wrong" if _status(reason) == 401 else "this user may not do this"
        told = "401, not authenticated" if _status(reason) == 401 else f"{one_line(reason):.200}"
        remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to a user who may"
        return ValueError(f"tracking server {shown(uri)} cannot be used ({told}): {why}: {remedy}")
    what = "that its folder can be written" if uri.startswith("sqlite") else "its address"
    remedy = (
        "start it with `make ui` or check the address, or unset MLFLOW_TRACKING_URI to use data/mlflow"
        if uri.startswith("http")
        else f"check {what}, or set MLFLOW_TRACKING_URI to another store"
    )
    return kind(f"tracking server {shown(uri)} cannot be used ({one_line(reason):.300}): {remedy}")


def _status(error: object) -> int:
    """Returns the HTTP status of an MLflow error, 0 for another."""
    loaded: Any = sys.modules.get("mlflow.exceptions")
    return int(error.get_http_status_code()) if loaded and isinstance(error, loaded.MlflowException) else 0


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_away(error: object) -> bool:
    """Tells whether an error says that server, database or object store does not answer now: no connection, a status
    of 500 and above. MLflow gives its own errors of the artefact store status 500.
    """
    if not isinstance(error, BaseException):
        return False
    lost = (Away, ConnectionError, TimeoutError)
    words = ("ConnectionError", "Timeout", "ConnectionClosed")  # of requests, urllib3 and botocore
    return any(
        isinstance(one, lost) or _status(one) >= 500 or any(word in type(one).__name__ for word in words)
        for one in _chain(error)
    )


def wait_s() -> float:
    """Returns SANA_SPRINT_TRACKING_WAIT_S, the seconds that a stage waits for a store that is away."""
    text = os.environ.get("SANA_SPRINT_TRACKING_WAIT_S", "").strip()
    try:
        return float(text) if text else WAIT_DEFAULT_S
    except ValueError:
        raise ValueError(f"SANA_SPRINT_TRACKING_WAIT_S is {text!r}, not a number of seconds") from None


def patiently(uri: str, action: Callable[[], T]) -> T:
    """Returns what `action` returns. While the store at `uri` is away it says so once and does `action` again and again
    until SANA_SPRINT_TRACKING_WAIT_S is over since it first failed; then the error is `unreachable`. What `action` does
    may be done twice.
    """
    limit_s = wait_s()
    deadline, delay_s = math.inf, RETRY_FIRST_S
    while True:
        try:
            return action()
        except Exception as error:
            if not (uri.startswith("http") and is_away(error)):
                raise
            deadline = min(deadline, time.monotonic() + limit_s)
            if time.monotonic() + delay_s > deadline:
                raise (error if isinstance(error, Away) else unreachable(uri, error)) from None
            if delay_s == RETRY_FIRST_S:
                sys.stderr.write(
                    f"warning: tracking server {shown(uri)} does not answer ({one_line(error):.200}): waiting for it, "
                    f"{limit_s:.0f} s at most (SANA_SPRINT_TRACKING_WAIT_S)\n"
                )
                sys.stderr.flush()
        time.sleep(delay_s)
        delay_s = min(2 * delay_s, RETRY_MAX_S)


def one_line(message: object) -> str:
    """Returns a message without its line breaks."""
    return " ".join(str(message).split())


def _probe(uri: str) -> None:
    """Raises ValueError when nobody listens at the address of a server or a database; MLflow's retries take minutes."""
    parts = urlsplit(uri)
    usual = PORTS.get(parts.scheme.partition("+")[0])
    if usual is None or (parts.hostname is None and not uri.startswith("http")):  # a database by its socket
        return
    try:
        port = parts.port or usual
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
    from sqlalchemy.exc import SQLAlchemyError

    for chatty in ("alembic", "mlflow.store.db.utils", "mlflow.pyfunc"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it tells of every try
    try:
        made = MlflowClient(tracking_uri=uri)
        made.get_experiment_by_name("Default")
    except (MlflowException, SQLAlchemyError, ImportError) as error:  # the last: a database without its driver
        raise unreachable(uri, error) from None
    return made


def absent(uri: str) -> Path | None:
    """Returns the file of a sqlite store that is not there, None for any other store."""
    place = Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None
    return None if place is None or place.exists() else place


def artifact_root(uri: str) -> Path:
    """Returns the folder of the artefacts of a sqlite store: `artifacts` beside the database file."""
    return Path(uri.removeprefix("sqlite:///")).absolute().parent / "artifacts"


def experiment(mlflow: MlflowClient, uri: str, profile: str) -> str:
    """Returns the id of the experiment `sana-sprint-<profile>`, made if it is absent, with its kind and description."""
    from mlflow.exceptions import MlflowException

    name = f"sana-sprint-{profile}"
    found = mlflow.get_experiment_by_name(name)
    if found is None:
        place = artifact_root(uri).as_uri() if uri.startswith("sqlite:///") else None
        try:
            mlflow.create_experiment(name, artifact_location=place)
        except MlflowException:
            if mlflow.get_experiment_by_name(name) is None:
                raise
        found = mlflow.get_experiment_by_name(name)
    assert found is not None, f"{name} was made a moment ago"
    if found.lifecycle_stage == "deleted":
        raise ValueError(f"experiment {name} is deleted in {shown(uri)}: restore it with `mlflow experiments restore`")
    for key, value in dashboard.experiment_tags(found.experiment_id, profile).items():
        if key not in found.tags:  # what people have written stays
            mlflow.set_experiment_tag(found.experiment_id, key, value)
    return str(found.experiment_id)
