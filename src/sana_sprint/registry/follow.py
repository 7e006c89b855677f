"""A follower of an alias: it asks the store, whatever store it is, and tells a receiver or a command when the alias has
moved. A message is told until it is taken, under one id, so a receiver may see it twice and knows it then.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sana_sprint import storage
from sana_sprint.registry import history, measured, store, versions, webhook

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mlflow.tracking import MlflowClient

    Deliver = Callable[[dict[str, Any]], str | None]  # returns why an event was not taken, or None

EVENT = "SANA_SPRINT_EVENT"
COMMAND_TIMEOUT_S = 600.0
WAIT_MAX_S = 30.0
NAMESPACE = uuid.UUID("7d0b3c1e-94a4-5c7b-8a55-0c5b0a6e7f11")  # of message ids


def to_url(url: str, shared: str) -> Deliver:
    """Returns what posts an event to a receiver, signed."""

    def deliver(event: dict[str, Any]) -> str | None:
        return webhook.post(url, shared, event["id"], json.dumps(event, sort_keys=True).encode())

    return deliver


def to_command(command: str) -> Deliver:
    """Returns what runs a command, without a shell, with the event in SANA_SPRINT_EVENT and on its stdin. Raises
    ValueError for a command that cannot be read."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ValueError(f"--command {command!r} cannot be read: {error}") from None
    if not words:
        raise ValueError("--command is empty: say what is to run when the alias moves")

    def deliver(event: dict[str, Any]) -> str | None:
        text = json.dumps(event, sort_keys=True)
        environment = {key: value for key, value in os.environ.items() if key != webhook.SECRET} | {EVENT: text}
        try:
            ended = subprocess.run(
                words, input=text, text=True, env=environment, stdout=sys.stderr, timeout=COMMAND_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return store.one_line(error)[:300]
        return None if ended.returncode == 0 else f"{words[0]} ended with {ended.returncode}"

    return deliver


@dataclass
class Follower:
    """Where a follower stands: the version that was told last, and the newest entry of the history then. With `state`,
    a file, it goes on from there when it is started again."""

    server: MlflowClient
    name: str
    alias: str
    version: str | None = None
    entry: int = 0
    state: Path | None = None

    @classmethod
    def begin(cls, server: MlflowClient, name: str, alias: str, state: Path | None, tell_first: bool) -> Follower:
        """Returns a follower that goes on from its state, else from where the alias is now; with `tell_first` that
        itself is told."""
        if state is not None and state.is_file():
            kept = storage.read_json(state)
            if (kept.get("name"), kept.get("alias")) != (name, alias):
                raise ValueError(
                    f"{state}: the state of {kept.get('name')}@{kept.get('alias')}; give each its own file"
                )
            return cls(server, name, alias, kept["version"], kept["entry"], state)
        chain = history.read(server, name)
        now = versions.version_of(server, name, alias)
        version = None if tell_first or now is None else str(now.version)
        made = cls(server, name, alias, version, 0 if tell_first else chain.head, state)
        made.save()
        return made

    def save(self) -> None:
        """Writes the state."""
        if self.state is not None:
            kept = {"name": self.name, "alias": self.alias, "version": self.version, "entry": self.entry}
            storage.write_json(self.state, kept)

    def look(self) -> dict[str, Any] | None:
        """Returns the event to tell, None when the alias is where it was."""
        found = versions.version_of(self.server, self.name, self.alias)
        now = str(found.version) if found else None
        if now == self.version:
            return None
        chain = history.read(self.server, self.name)
        new = [entry for entry in chain.entries if entry.valid and entry.number > self.entry]
        last = new[-1] if new and new[-1].to == now and self.alias == versions.CHAMPION else None
        event = {
            "event": f"{self.alias}.moved",
            "name": self.name,
            "alias": self.alias,
            "from": self.version,
            "to": now,
            "at": history.now(),
            "weights_digest": found.tags.get(measured.WEIGHTS) if found else None,
            "head": chain.head,
            "entries": [entry.number for entry in new],
            "entry": last.public() if last else None,  # None: moved by other hands
        }
        told = f"{self.name}@{self.alias} {self.version} -> {now} after {self.entry} at {chain.head}"
        return event | {"id": str(uuid.uuid5(NAMESPACE, told))}

    def absent(self) -> str:
        """Returns in words that there is no such alias to follow so far, nothing where there is one."""
        if self.version is not None:
            return ""
        aliases = self.server.get_registered_model(self.name).aliases
        if self.alias in aliases:  # set since the look before: the next one finds it
            return ""
        there = ", ".join(sorted(aliases)) or "none"
        return f"no version of {self.name} has the alias '{self.alias}' yet; there are: {there}"

    def keep(self, event: dict[str, Any]) -> None:
        """Takes down that an event was told."""
        self.version, self.entry = event["to"], event["head"]
        self.save()


def tell(event: dict[str, Any], deliver: Deliver, tries: int, wait_s: float = 1.0) -> tuple[str | None, int]:
    """Returns (why the event was not taken or None, how often it was tried), waiting twice as long after each try."""
    for number in range(1, tries + 1):
        why = deliver(event)
        if why is None or number == tries:
            return why, number
        time.sleep(min(wait_s * 2 ** (number - 1), WAIT_MAX_S))
    raise AssertionError("at least one try")


def follow(follower: Follower, deliver: Deliver, every_s: float, tries: int, once: bool) -> Iterator[dict[str, Any]]:
    """Yields each event with what became of it, for ever or after one look. A store that is away is waited for; an
    event that was not taken comes again at the next look. An alias that no version has is told on stderr; with `once`
    it is a ValueError."""
    warned = ""
    while True:
        event, fault = _look(follower, once)
        if fault and fault != warned:
            sys.stderr.write(f"warning: {fault}\n")
        warned = fault
        if event is not None:
            why, number = tell(event, deliver, tries)
            if why is None:
                follower.keep(event)
            yield event | {"delivered": why is None, "tries": number, "fault": why}
        if once:
            return
        time.sleep(every_s)


def _look(follower: Follower, once: bool) -> tuple[dict[str, Any] | None, str]:
    """Returns (the event to tell or None, what there is to warn of or nothing). With `once` the latter is raised."""
    from mlflow.exceptions import MlflowException

    try:
        event = follower.look()
        fault = follower.absent() if event is None else ""
    except (MlflowException, OSError) as error:
        if once:
            raise
        return None, f"{follower.name}: the store does not answer: {store.one_line(error):.300}"
    if once and fault:
        raise ValueError(fault)
    return event, fault
