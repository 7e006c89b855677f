"""Moves of the champion: the entry first, then the aliases, then the mark that it is done. Whoever comes next finishes
a move that its process left in the middle.

The mark is a tag on the version that became champion, `history_entry.<number>`: the entry's digest. It is a second
witness of the entry: one that is taken out of the history leaves its mark behind.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from sana_sprint.registry import history, lineage, measured, versions
from sana_sprint.registry.versions import CHAMPION, PREVIOUS

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

    from sana_sprint.registry.history import Chain, Entry

MARK = "history_entry."
PATIENCE_S, POLL_S = 10.0, 0.2  # how long the move of a process that may live on is waited for


def done(server: MlflowClient, name: str, entry: Entry) -> bool:
    """Tells whether the aliases were moved as an entry says; of a version that is deleted there is nothing to move."""
    version = versions.numbered(server, name, entry.to) if entry.to else None
    return version is None or f"{MARK}{entry.number}" in version.tags


def settle(server: MlflowClient, name: str) -> Chain:
    """Returns the history once its newest move is finished, here if its process is dead or does not come to an end."""
    patience_until = time.monotonic() + PATIENCE_S
    while True:
        chain = history.read(server, name)
        if chain.last is None or done(server, name, chain.last):
            return chain
        if lineage.is_dead(str(chain.last.content.get("process"))) or time.monotonic() > patience_until:
            carry_out(server, chain, chain.last)
            return history.read(server, name)
        time.sleep(POLL_S)


def carry_out(server: MlflowClient, chain: Chain, entry: Entry) -> None:
    """Moves the aliases to where an entry says, and again while newer ones come: the last to write has looked after it
    wrote."""
    while True:
        if entry.to is not None:
            server.set_registered_model_alias(chain.name, CHAMPION, entry.to)
            _previous(server, chain.name, entry)
            _mark(server, chain.name, entry)
        last = history.again(server, chain).last
        if last is None or last.number == entry.number:
            return
        entry = last


def _mark(server: MlflowClient, name: str, entry: Entry) -> None:
    """Takes down on the version that is champion by an entry that this is done. A mark that is there stays: it may tell
    of an entry of this number that was taken out."""
    version = versions.numbered(server, name, entry.to) if entry.to else None
    if version is not None and f"{MARK}{entry.number}" not in version.tags:
        server.set_model_version_tag(name, str(version.version), f"{MARK}{entry.number}", entry.digest)


def _previous(server: MlflowClient, name: str, entry: Entry) -> None:
    """Points `previous` to the version that an entry names, else takes it off. Where a server lets the model's owner
    alone take an alias off, it goes to the champion itself."""
    from mlflow.exceptions import MlflowException

    number = entry.content.get("previous")
    if number is not None and versions.numbered(server, name, number) is not None:
        server.set_registered_model_alias(name, PREVIOUS, number)
    elif PREVIOUS in server.get_registered_model(name).aliases:
        try:
            server.delete_registered_model_alias(name, PREVIOUS)
        except MlflowException as error:
            if error.get_http_status_code() != versions.FORBIDDEN:
                raise
            assert entry.to is not None
            server.set_registered_model_alias(name, PREVIOUS, entry.to)


def record(
    server: MlflowClient, chain: Chain, action: str, before: str | None, to: str, why: str, **more: Any
) -> Entry:
    """Returns the entry of a move of the champion from version `before` to `to`, which is made. A champion that other
    hands had set since the last entry gets an entry first. Raises OvertakenError when somebody else was faster."""
    _same(server, chain, before)
    if before != chain.champion:
        told = "found so: the alias was moved by other hands, which wrote no entry"
        weights = {number: digest for number, digest in more["weights"].items() if number == before}
        said = history.content("found", chain.champion, before, told, previous=None, weights=weights)
        found = history.append(server, chain, said)
        _mark(server, chain.name, found)
        chain = history.again(server, chain)
    entry = history.append(server, chain, history.content(action, before, to, why, **more))
    carry_out(server, chain, entry)
    return entry


def _same(server: MlflowClient, chain: Chain, before: str | None) -> None:
    """Raises OvertakenError when other hands have moved the alias since the history was read; a move that has an entry
    is told by the next append."""
    now = server.get_registered_model(chain.name).aliases.get(CHAMPION)
    if (None if now is None else str(now)) != before and history.again(server, chain).head == chain.head:
        found = f"version {now}" if now else "none"
        told = f"{chain.name}: the champion was moved by other hands meanwhile and is {found}; try again"
        raise history.OvertakenError(told)


def weights(*found: ModelVersion | None) -> dict[str, str]:
    """Returns the sha256 of the weights of versions, by number, as their tags have it."""
    return {str(one.version): one.tags.get(measured.WEIGHTS, "none") for one in found if one is not None}
