"""The history of a model: every move of its champion, in order, each with the digests of what came before.

The entries of model NAME are the versions of the companion model NAME.history: the store hands out their numbers, one
after the other, whoever asks (MLflow has no compare-and-set on aliases; this is what stands in for it). An entry names
the number it follows. If another came in between it is void, and whoever wrote it has moved nothing. It is written
before the aliases move, so a process that dies in the middle leaves an entry that the next command finishes.

    entry     JSON of who, when, what, why, with "after": {number: sha256} of all entries since the last valid one
    digest    sha256 of that JSON, beside it
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import socket
import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from sana_sprint import config
from sana_sprint.registry import lineage, packed, versions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

SUFFIX = config.HISTORY_SUFFIX
ENTRY, DIGEST, VOID = "entry", "digest", "void"
SOURCE = "sana-sprint-history:/entry"  # a version must name an absolute source; an entry has no files
EARLIER = "history."  # prefix of the registered model's tags that held the history before there were entries
FORMAT = 1
TRIES = 8


class OvertakenError(ValueError):
    """Somebody else moved the champion since it was looked at; nothing was changed."""


@dataclass(frozen=True)
class Entry:
    """One version of NAME.history: its number, the text, and what stands beside it in the store."""

    number: int
    text: str
    stored_digest: str
    stored_line: str

    @cached_property
    def content(self) -> dict[str, Any]:
        """The entry as JSON types; {} for a text that is none."""
        try:
            found = json.loads(self.text)
        except json.JSONDecodeError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def digest(self) -> str:
        """sha256 of the text as it stands now."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def after(self) -> dict[int, str]:
        """The digests of the entries before, as this one knew them."""
        found = self.content.get("after")
        return {int(number): digest for number, digest in found.items()} if isinstance(found, dict) else {}

    @property
    def valid(self) -> bool:
        """Whether no other entry came between it and the one that it follows."""
        return bool(self.content) and max(self.after, default=0) == self.number - 1

    @property
    def to(self) -> str | None:
        """The version that is champion after it."""
        return self.content.get("to")

    @property
    def line(self) -> str:
        """The entry in one line, the description of its version."""
        return line(self.content)

    def public(self) -> dict[str, Any]:
        """Returns it as JSON types."""
        told = {key: value for key, value in self.content.items() if key != "format"}
        return {"entry": self.number, "digest": self.digest, "void": not self.valid} | told


@dataclass(frozen=True)
class Chain:
    """The entries of a model by number, the events that its tags held before there were entries, and where its aliases
    were when it was read."""

    name: str
    entries: list[Entry]
    earlier: list[dict[str, Any]]
    aliases: dict[str, str]

    @property
    def head(self) -> int:
        """The number of the newest entry, void or not; 0 where there is none."""
        return self.entries[-1].number if self.entries else 0

    @property
    def last(self) -> Entry | None:
        """The newest valid entry: what it says is so."""
        return next((entry for entry in reversed(self.entries) if entry.valid), None)

    @property
    def champion(self) -> str | None:
        """The champion as the history has it."""
        if self.last is not None:
            return self.last.to
        return str(self.earlier[-1]["version"]) if self.earlier else None

    def after(self) -> dict[str, str]:
        """Returns what a new entry says of those before it: the digests from the last valid one on."""
        start = self.last.number if self.last else 0
        return {str(entry.number): entry.digest for entry in self.entries if entry.number >= start}

    def events(self) -> list[dict[str, Any]]:
        """Returns the moves that were made, oldest first, each with action, from and to."""
        before = [event | {"from": event["before"], "to": event["version"]} for event in self.earlier]
        return before + [entry.public() for entry in self.entries if entry.valid]


def told_whole(event: Mapping[str, Any]) -> bool:
    """Tells whether what `Entry.public` told of an entry still has the digest that stands in it, wherever it went."""
    beside = ("entry", "digest", "void", "store")
    text = packed.text({"format": FORMAT} | {key: value for key, value in event.items() if key not in beside})
    return hashlib.sha256(text.encode()).hexdigest() == event.get("digest")


def line(content: dict[str, Any]) -> str:
    """Returns the content of an entry in one line."""
    moved = f"{content.get('from') or 'none'} -> {content.get('to') or 'none'}"
    return f"{content.get('action')} {moved}, by {content.get('user')}: {content.get('why')}"[:4000]


def who() -> str:
    """Returns who is at work: the user whom requests logs in, by the server's address, else by
    MLFLOW_TRACKING_USERNAME or ~/.mlflow/credentials; without one user@host of the system."""
    from mlflow.utils.credentials import read_mlflow_creds

    address = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", "").strip())
    of_address = unquote(address.username or "") if address.scheme in ("http", "https") else ""
    of_mlflow = (read_mlflow_creds().username or "").strip()
    return of_address or of_mlflow or f"{getpass.getuser()}@{socket.gethostname()}"


def now() -> str:
    """Returns the time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read(server: MlflowClient, name: str) -> Chain:
    """Returns the history of a model. Raises ValueError when there is no such model."""
    from mlflow.exceptions import MlflowException

    try:
        model = server.get_registered_model(name)
    except MlflowException as error:
        if error.error_code in versions.ABSENT or versions.hidden(server, name, error):
            raise ValueError(f"{name}: no such registered model; run `dvc repro register` first") from None
        raise
    earlier = [json.loads(model.tags[key]) for key in sorted(model.tags) if key.startswith(EARLIER)]
    aliases = {alias: str(version) for alias, version in model.aliases.items()}
    return again(server, Chain(name, [], earlier, aliases))


def again(server: MlflowClient, chain: Chain) -> Chain:
    """Returns a history with the entries that there are now."""
    return replace(chain, entries=[_entry(version) for version in versions.every(server, chain.name + SUFFIX)])


def _entry(version: ModelVersion) -> Entry:
    text = packed.joined(version.tags, ENTRY) or ""
    return Entry(int(version.version), text, version.tags.get(DIGEST, ""), version.description or "")


def content(action: str, before: str | None, to: str | None, why: str, **more: Any) -> dict[str, Any]:
    """Returns the content of an entry, by this process and now; `append` adds what came before it."""
    return {
        "format": FORMAT,
        "action": action,
        "at": now(),
        "user": who(),
        "process": lineage.process(),
        "id": uuid.uuid4().hex,
        "from": before,
        "to": to,
        "why": why,
    } | more


def append(server: MlflowClient, chain: Chain, said: dict[str, Any]) -> Entry:
    """Returns the new entry, which follows `chain`. Raises OvertakenError, having changed nothing that counts, when
    somebody else's valid entry came first."""
    seen = chain.head
    for _ in range(TRIES):
        number = _create(server, chain, said)
        new = again(server, chain)
        mine = next((entry for entry in new.entries if entry.content.get("id") == said["id"] and entry.valid), None)
        if mine is not None:  # by this request or, where an answer was lost, by the one before it
            return mine
        first = next((entry for entry in new.entries if entry.valid and entry.number > seen), None)
        if first is not None:
            if number is not None:
                server.set_model_version_tag(chain.name + SUFFIX, str(number), VOID, f"entry {first.number} came first")
            raise OvertakenError(_overtaken(chain, said, first))
        chain = new  # void entries alone came between, or numbers of deleted ones: the champion did not move
    raise ValueError(f"{chain.name}: its history took no entry in {TRIES} tries: too many write it at once; try again")


def _overtaken(chain: Chain, said: dict[str, Any], first: Entry) -> str:
    did, became = first.content, f"version {first.to}" if first.to else "none"
    was = f"version {said['from']}" if said["from"] else "none"
    return (
        f"{chain.name}: {did.get('user')} moved the champion meanwhile ({did.get('action')}, entry {first.number} at "
        f"{did.get('at')}): it was {was} and is {became}; nothing was changed here: look at `sana-sprint history` and "
        "try again"
    )


def _create(server: MlflowClient, chain: Chain, said: dict[str, Any]) -> int | None:
    """Returns the number that the store gave the entry, None when too many asked at once."""
    from mlflow.exceptions import MlflowException

    if not chain.entries and chain.earlier:
        said = said | {"earlier": hashlib.sha256(packed.text(chain.earlier).encode()).hexdigest()}
    text = packed.text(said | {"after": chain.after()})
    tags = packed.cut(ENTRY, text) | {DIGEST: hashlib.sha256(text.encode()).hexdigest()}
    name = chain.name + SUFFIX
    if not chain.entries:
        _create_model(server, chain.name)
    try:
        return int(server.create_model_version(name, SOURCE, tags=tags, description=line(said)).version)
    except MlflowException as error:
        if "Giving up after" in str(error):
            return None
        raise


def _create_model(server: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    told = (
        f"The history of {name}: every version is an entry, a move of the alias champion, in order, with the digests "
        "of those before it. Written by sana-sprint; `sana-sprint audit` checks it. Change and delete nothing here."
    )
    try:
        server.create_registered_model(name + SUFFIX, description=told)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
