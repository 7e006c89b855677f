"""What must lie nowhere that a stage or the team's server writes: secrets, and pickle."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Iterable
from pathlib import Path

from sana_sprint.registry import trust
from tests.team import parts


def files(places: Iterable[Path], but: str = "") -> list[Path]:
    """All files in these places, which are files or folders, but those with a part `but` in their path."""
    found = [file for place in places for file in ([place] if place.is_file() else trust.entries(place))]
    return [file for file in found if file.is_file() and not file.is_symlink() and but not in file.parts]


def dumps(team: parts.Team) -> dict[str, bytes]:
    """Both databases as pg_dump writes them, plain."""
    environment = parts.plain_environment() | team.settings
    return {
        name: subprocess.run(
            ["pg_dump", "--dbname", team.settings[name]], env=environment, check=True, capture_output=True
        ).stdout
        for name in ("MLFLOW_BACKEND_STORE_URI", "MLFLOW_AUTH_DATABASE_URI")
    }


def written(secret: str) -> set[bytes]:
    """How a secret may stand somewhere: as it is, and within base64 of a text around it, as in `Authorization: Basic`,
    which is one of three by how many bytes are before it."""
    word = secret.encode()
    inner = ((len(one) * 8 // 6, base64.b64encode(one)) for one in (bytes(before) + word for before in range(3)))
    starts = (0, 2, 3)  # the first character that the bytes before have no part in
    return {word} | {text[start:end] for start, (end, text) in zip(starts, inner, strict=True)}


def secrets_found(team: parts.Team, *places: Path) -> list[str]:
    """Where a password or a key of the team stands: in which of the databases, of the bucket's files and of the files
    in these places. DVC's cache is left out: it holds the outputs once more."""
    assert min(map(len, team.secrets())) >= 12
    words = sorted({word for secret in team.secrets() for word in written(secret)})
    texts = dumps(team)
    assert b"COPY public.runs" in texts["MLFLOW_BACKEND_STORE_URI"]
    assert b"COPY public.users" in texts["MLFLOW_AUTH_DATABASE_URI"]
    found = [name for name, text in texts.items() if any(word in text for word in words)]
    for file in files([team.buckets, *places], but=".dvc"):
        text = file.read_bytes()
        found += [str(file)] * any(word in text for word in words)
    return found


def pickles_found(*places: Path) -> list[str]:
    """The files in these places that are a pickle, hold one or name one."""
    looked = files(places)
    assert looked
    return [
        str(file)
        for file in looked
        if trust.pickled(file) or (file.name == "MLmodel" and trust.model_file(file) is not None)
    ]
