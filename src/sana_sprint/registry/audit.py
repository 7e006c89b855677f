"""The audit of a model's history: is every entry as it was written, none missing, and is what the last one says so?

Each entry has four witnesses: its own digest, the digests in the entries after it, the mark on the version that it made
champion, and its line in the list. Whoever can write to the store can change them all; a digest that was kept elsewhere
(`promote --json`, a webhook's body) is held against the history by `audit --contains`.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sana_sprint.registry import digests, history, measured, moves, packed, shared_files, transfer, versions
from sana_sprint.registry.versions import CHAMPION, PREVIOUS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

    from sana_sprint.registry.history import Chain, Entry


@dataclass(frozen=True)
class Fault:
    """What is wrong, and in which entry where it is one."""

    entry: int | None
    text: str


def audit(server: MlflowClient, name: str, files: bool = False) -> tuple[Chain, list[Fault]]:
    """Returns the history and what is wrong with it, in the order of its entries; `files` reads the files of every
    version that it names."""
    chain = history.read(server, name)
    there = {str(version.version): version for version in versions.every(server, name)}
    faults = [*_texts(chain), *_gaps(chain), *_marks(chain, there), *_pasts(there)]
    bad = {fault.entry for fault in faults if fault.entry is not None}
    faults += [*_order(chain, bad), *_versions(server, chain, there, files)]
    if chain.last is None or not bad & set(range(chain.last.number, chain.head + 2)):
        faults += _aliases(server, chain, there)  # of a changed entry's words the aliases are no measure
    return chain, sorted(set(faults), key=lambda fault: (fault.entry is None, fault.entry or 0, fault.text))


def orphans(server: MlflowClient, names: list[str]) -> list[str]:
    """Returns in words which of these models were deleted although their histories are there."""
    found = {str(model.name) for name in names for model in server.search_registered_models(f"name LIKE '{name}%'")}
    return [
        f"{name}: the model is deleted, its history {name}{history.SUFFIX} is there"
        for name in names
        if name not in found and f"{name}{history.SUFFIX}" in found
    ]


def _pasts(there: dict[str, ModelVersion]) -> Iterator[Fault]:
    """Yields a fault for each move in another registry, told by a version that came from there, that was changed."""
    for number, version in there.items():
        for event in transfer.listed(version.tags, transfer.PAST):
            if "digest" in event and not history.told_whole(event):
                place = f"entry {event.get('entry')} of {event.get('store')}"
                yield Fault(None, f"version {number} tells of {place} in other words than its digest says")


def _texts(chain: Chain) -> Iterator[Fault]:
    """Yields a fault for each entry whose text is not what its digests say."""
    for entry in chain.entries:
        known = {entry.stored_digest: "its own digest"}
        for later in chain.entries:
            if later.number > entry.number and (kept := later.after.get(entry.number)) is not None:
                known.setdefault(kept, f"entry {later.number}")
        others = [witness for digest, witness in known.items() if digest != entry.digest]
        if others:
            yield Fault(entry.number, f"was changed: its text has another digest than {' and '.join(others)} says")
        elif entry.stored_line != entry.line:
            yield Fault(entry.number, f"was changed: its description is not what it says, which is '{entry.line}'")
    first = chain.entries[0].content.get("earlier") if chain.entries else None
    if first is not None and first != hashlib.sha256(packed.text(chain.earlier).encode()).hexdigest():
        yield Fault(1, f"does not fit the tags {history.EARLIER}* of the model, which hold the history before it")


def _gaps(chain: Chain) -> Iterator[Fault]:
    """Yields a fault for each number without an entry."""
    numbers = {entry.number for entry in chain.entries}
    named = {number for entry in chain.entries for number in entry.after}
    for number in sorted(set(range(1, max(numbers | named, default=0) + 1)) - numbers):
        yield Fault(number, "is gone")


def _order(chain: Chain, bad: set[int]) -> Iterator[Fault]:
    """Yields a fault where a move does not start where the one before it ended, but for moves beside bad entries."""
    before, at = str(chain.earlier[-1]["version"]) if chain.earlier else None, 0
    for entry in (entry for entry in chain.entries if entry.valid):
        if entry.content.get("from") != before and not bad & set(range(at, entry.number + 1)):
            yield Fault(entry.number, f"starts from {entry.content.get('from')}, the one before it ended at {before}")
        before, at = entry.to, entry.number


def _marks(chain: Chain, there: dict[str, ModelVersion]) -> Iterator[Fault]:
    """Yields a fault for each mark on a version that fits no entry, and each entry whose mark is missing."""
    entries = {entry.number: entry for entry in chain.entries}
    for number, version in there.items():
        for key, digest in version.tags.items():
            place = key.removeprefix(moves.MARK)
            if key == place or not place.isdigit():
                continue
            entry = entries.get(int(place))
            if entry is None:
                yield Fault(int(place), f"is gone: version {number} says that it became champion by it")
            elif entry.digest != digest:
                yield Fault(int(place), f"was changed: version {number} became champion by one with another digest")
    for entry in (entry for entry in chain.entries if entry.valid and entry is not chain.last):
        made = there.get(entry.to or "")
        if made is not None and f"{moves.MARK}{entry.number}" not in made.tags and not _overtaken(chain, entry):
            yield Fault(entry.number, f"was not carried out, or its mark was taken from version {entry.to}")


def _overtaken(chain: Chain, entry: Entry) -> bool:
    """Tells whether the next valid entry says that this one was never carried out."""
    after = next((one for one in chain.entries if one.valid and one.number > entry.number), None)
    return after is not None and after.content.get("action") == "found"


def _aliases(server: MlflowClient, chain: Chain, there: dict[str, ModelVersion]) -> Iterator[Fault]:
    """Yields a fault where the aliases are not at what the last entry says."""
    last = chain.last
    if last is not None and last.to in there and not moves.done(server, chain.name, last):
        told = "was not carried out: the next `promote` or `rollback` finishes it, as does `audit --finish`"
        yield Fault(last.number, told)
        return
    asked = {CHAMPION: chain.champion}
    if last is not None and last.content.get("action") != "found":
        asked[PREVIOUS] = last.content.get("previous")
    for alias, wanted in asked.items():
        now = chain.aliases.get(alias)
        off = {None, chain.champion} if alias == PREVIOUS else {None}  # see moves: not everybody may take it off
        if now not in ({wanted} if wanted in there else off):
            by = f"the last entry, {last.number}, says {wanted}" if last else f"the history says {wanted}"
            yield Fault(None, f"alias '{alias}' is at version {now}, {by}: it was moved by other hands")


def _versions(server: MlflowClient, chain: Chain, there: dict[str, ModelVersion], files: bool) -> Iterator[Fault]:
    """Yields a fault for each version of the history that is gone, has other weights, or whose files are gone."""
    named: dict[str, tuple[int, str]] = {}
    for entry in chain.entries:
        for number, digest in entry.content.get("weights", {}).items():
            named.setdefault(number, (entry.number, digest))
            if named[number][1] != digest:
                yield Fault(entry.number, f"names other weights of version {number} than entry {named[number][0]}")
    for number, (entry_number, digest) in named.items():
        told = _version(server, there.get(number), number, digest)
        if told is not None:
            yield Fault(entry_number, told)
        elif files:
            yield from _files(server, there[number], entry_number)


def _version(server: MlflowClient, version: ModelVersion | None, number: str, digest: str) -> str | None:
    """Returns what is wrong with a version whose weights had a digest, or None."""
    if version is None:
        return f"names version {number}, which is deleted"
    found = version.tags.get(measured.WEIGHTS, "none")
    if found != digest:
        return f"names version {number} with the weights {digest[:12]}; its tag says {found[:12]} now"
    gone = versions.fault(server, version)
    return f"names version {number}, whose files are gone ({gone})" if gone else None


def _files(server: MlflowClient, version: ModelVersion, entry: int) -> Iterator[Fault]:
    """Yields a fault where a version's files are not as its tags tell."""
    if not digests.recorded(version.tags) and measured.FILES not in version.tags:
        told = f"names version {version.version}, which has no tag '{digests.LIST}' to check its files by"
        yield Fault(entry, told)
        return
    own_disk = shared_files.local(versions.root(server, version)) is not None
    with tempfile.TemporaryDirectory(prefix="sana-sprint-audit-") as place:
        try:
            versions.fetched(server, version, None if own_disk else Path(place), scores=True)
        except ValueError as error:
            why = str(error).removeprefix(f"{version.name} version {version.version}: ")
            yield Fault(entry, f"names version {version.version}, whose files are refused: {why}")


def unlisted(server: MlflowClient, chain: Chain) -> list[str]:
    """Returns in words which versions of a history were registered before the digests of every file were recorded:
    those of their pipeline folders were checked, their code could not be."""
    there = {str(version.version): version for version in versions.every(server, chain.name)}
    named = {number for entry in chain.entries for number in entry.content.get("weights", {})}
    return [
        f"version {number} was registered before every file's digest was recorded: its pipeline folder was checked, "
        "the code beside it could not be"
        for number in sorted(named & there.keys(), key=int)
        if not digests.recorded(there[number].tags) and measured.FILES in there[number].tags
    ]
