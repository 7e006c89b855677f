"""The other side of a transfer: who one is there. The variables SANA_SPRINT_TARGET_* stand in for those of MLflow and
of S3 while the target is spoken to, and at no other time; what is not set is the same on both sides.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from sana_sprint import console
from sana_sprint.registry import store

if TYPE_CHECKING:
    from collections.abc import Iterator

USER, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
ENDPOINT, KEY, SECRET = "MLFLOW_S3_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"
VARIABLES = {
    USER: "SANA_SPRINT_TARGET_USERNAME",
    PASSWORD: "SANA_SPRINT_TARGET_PASSWORD",
    ENDPOINT: "SANA_SPRINT_TARGET_S3_ENDPOINT_URL",
    KEY: "SANA_SPRINT_TARGET_AWS_ACCESS_KEY_ID",
    SECRET: "SANA_SPRINT_TARGET_AWS_SECRET_ACCESS_KEY",
}
TOGETHER = ((USER, PASSWORD), (KEY, SECRET))


def settings() -> dict[str, str]:
    """Returns what the target's variables say, under the names that MLflow and S3 read. Raises ValueError where one of
    two that belong together is missing.
    """
    found = {plain: text for plain, name in VARIABLES.items() if (text := os.environ.get(name, "").strip())}
    for one, other in (*TOGETHER, *(pair[::-1] for pair in TOGETHER)):
        if one in found and other not in found:
            raise ValueError(f"{VARIABLES[one]} is set and {VARIABLES[other]} is not: set both or none")
    return found


@contextmanager
def spoken_to(uri: str) -> Iterator[None]:
    """Makes this process the target's user for a while. Who is not let in there is told in a ValueError that names the
    target's variables.
    """
    theirs = settings()
    before = {name: os.environ.get(name) for name in theirs}
    os.environ |= theirs
    try:
        with _keys(theirs):
            yield
    except Exception as error:
        told = _told(uri, error)
        if told is None:
            raise
        raise ValueError(told) from None
    finally:
        for name, text in before.items():
            if text is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = text


@contextmanager
def _keys(theirs: dict[str, str]) -> Iterator[None]:
    """Gives the target's key to S3 by hand for a while: boto3 reads the environment once in a process."""
    if KEY not in theirs:
        yield
        return
    from mlflow.store.artifact.artifact_repository_registry import get_registered_artifact_repositories

    known: Any = get_registered_artifact_repositories()
    plain = known["s3"]
    known["s3"] = partial(plain, access_key_id=theirs[KEY], secret_access_key=theirs[SECRET])
    try:
        yield
    finally:
        known["s3"] = plain


def _told(uri: str, error: Exception) -> str | None:
    """Returns in one line why the target lets nobody in, or None for another error."""
    from mlflow.exceptions import MlflowException

    if _of_object_store(error):
        told = f"the object store of {store.shown(uri)} cannot be used ({store.one_line(error):.300}): {console.KEYS}"
    elif isinstance(error, MlflowException) and error.get_http_status_code() in (401, 403):
        told = str(store.unreachable(uri, error))
    else:
        told = str(error) if isinstance(error, ValueError) else ""
    named = told
    for plain, name in VARIABLES.items():
        named = named.replace(plain, name)
    return named if named != told else None


def _of_object_store(error: BaseException | None) -> bool:
    """Tells whether an error, or one that led to it, is of a client of S3."""
    while error is not None:
        if type(error).__module__.startswith(console.OBJECT_STORE):
            return True
        error = error.__cause__ or error.__context__
    return False
