"""The commands of `sana-sprint` on the champion: promote, rollback, history, audit; and how all commands find the
model that is meant."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sana_sprint import config, console
from sana_sprint.console import Json, with_example
from sana_sprint.registry import lineage

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from sana_sprint.registry.audit import Fault
    from sana_sprint.registry.history import Chain
    from sana_sprint.registry.promote import Verdict

POLICY = Path("mlflow/promotion.yaml")
NONE = "none is registered; run `dvc repro` first"
Size = Annotated[str | None, typer.Option(help="Student size, such as small or base.")]
Name = Annotated[str | None, typer.Argument(help="Registered model; default: the profile's model of --size.")]
Reason = Annotated[str | None, typer.Option(help="Why, for the history.")]


def server(make: bool = False) -> MlflowClient:
    """Returns a client of the store in use. Raises ValueError where that is a file which is not there, unless it is to
    be made."""
    from sana_sprint.registry import store

    uri = store.tracking_uri()
    if not make and (absent := store.absent(uri)):
        raise ValueError(f"{absent}: no store there; run `dvc repro` to make it, or name one in MLFLOW_TRACKING_URI")
    return store.client(uri)


def profile_names() -> list[str]:
    """Returns what the registered models of the profile in use are called, whether they are there or not."""
    root = lineage.repository()
    prefix = config.load(config.Register, root).model_name
    return sorted(f"{prefix}-{size}" for size in config.load(config.Prune, root).sizes)


def names(client: MlflowClient) -> list[str]:
    """Returns the registered models of the profile in use."""
    prefix = config.load(config.Register, lineage.repository()).model_name
    found = client.search_registered_models(f"name LIKE '{prefix}-%'")  # those of the profile demo-long too
    return sorted({str(model.name) for model in found} & set(profile_names()))


def chosen(client: MlflowClient, name: str | None, size: str | None) -> str:
    """Returns the model that is meant. Raises ValueError listing the choice when it is not clear."""
    if name:
        return name
    if size:
        return f"{config.load(config.Register, lineage.repository()).model_name}-{size}"
    there = names(client)
    if len(there) == 1:
        return there[0]
    choice = f"name one of {', '.join(there)}" if there else NONE
    raise ValueError(f"which model? {choice}, or give --size")


def several(client: MlflowClient, name: str | None, size: str | None) -> list[str]:
    """Returns the model that is named, else all of the profile."""
    return [chosen(client, name, size)] if name or size else names(client)


@with_example(
    "sana-sprint promote sana-sprint-demo-base --dry-run",
    'sana-sprint promote --size base --version 3 --force --reason "the judge was broken, issue 12"',
)
def promote(
    name: Name = None,
    size: Size = None,
    version: Annotated[str | None, typer.Option(help="Version number; default: the challenger.")] = None,
    policy: Annotated[Path | None, typer.Option(help="Default: mlflow/promotion.yaml.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Move nothing: the table and the exit code.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Although gates do not hold; needs --reason.")] = False,
    reason: Reason = None,
    reevaluate: Annotated[
        bool, typer.Option("--reevaluate", help="First score the champion under its protocol; the scores stay with it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a version the champion if every gate of mlflow/promotion.yaml holds, or by force."""
    if force and not (reason or "").strip():
        raise ValueError("--force needs --reason: the history keeps why gates were passed over")
    from sana_sprint.registry import policy as policies
    from sana_sprint.registry import promote as promotion

    rules = policies.load(policy or lineage.repository() / POLICY)
    client = server()
    model = chosen(client, name, size)
    if reevaluate:
        _reevaluate(client, model, version)
    verdict = promotion.judge(client, model, rules, version, look=dry_run)
    if verdict.champion_fault:
        gone = f"the champion, version {verdict.before}: its files are gone ({verdict.champion_fault})"
        typer.echo(f"warning: {model}: {gone}, so no rollback can put it back", err=True)
    if not as_json:
        rows = [gate.row() for gate in verdict.gates]
        console.table(f"{model} version {verdict.version}", ["gate", "value", "bound", "verdict"], rows)
    moves = not dry_run and (verdict.holds or force)
    entry = promotion.move(client, verdict, reason or promotion.HELD, force) if moves else None
    if as_json:
        told = {"dry_run": dry_run, "promoted": entry is not None, "entry": entry.public() if entry else None}
        console.emit(verdict.public() | told)
    _promoted(verdict, dry_run, force, quiet=as_json)


def _promoted(verdict: Verdict, dry_run: bool, force: bool, quiet: bool) -> None:
    """Tells what became of a promotion; ends with exit code 3 when gates refuse it."""
    called, was = f"{verdict.name} version {verdict.version}", verdict.before or "none"
    if not verdict.holds and (dry_run or not force):
        stays = f"champion stays version {verdict.before}" if verdict.before else "there is still no champion"
        console.refuse(f"{called} is not promoted, {stays}: {verdict.reasons}")
    if quiet:
        return
    if verdict.before == verdict.version:
        typer.echo(f"{verdict.name}: version {verdict.version} is the champion already")
    elif dry_run:
        typer.echo(f"{called} would be promoted (champion now: {was}); --dry-run moved nothing")
    else:
        by = "" if verdict.holds else f", by force: {verdict.reasons}"
        typer.echo(f"{verdict.name}: champion is now version {verdict.version} (was {was}){by}")


def _reevaluate(client: MlflowClient, model: str, version: str | None) -> None:
    """Scores the champion under the protocol of the version that is to be promoted, by evaluate's code, on the data and
    with the judge of the working tree; the scores go to the champion's version."""
    from sana_sprint.evaluation import again
    from sana_sprint.registry import reevaluation, versions

    root = lineage.repository()
    challenger = versions.find(client, model, version)
    champion, folder = reevaluation.champion(client, model)
    params, sampling = config.load(config.Evaluate, root), config.load(config.Sampling, root)
    sigma_d = config.load(config.TrigFlow, root).sigma_d
    size = champion.tags.get("size", model.rpartition("-")[2])
    agreed = partial(reevaluation.same_protocol, challenger)
    found = again.run(params, sampling, sigma_d, folder, root, size, agreed)
    reevaluation.record(client, champion, found, folder)


@with_example("sana-sprint rollback --size base", "sana-sprint rollback sana-sprint-demo-base --steps 2 --reason slow")
def rollback(
    name: Name = None,
    size: Size = None,
    steps: Annotated[int, typer.Option(help="How many champions back.", min=1)] = 1,
    to: Annotated[str | None, typer.Option(help="The earlier champion to go back to, by version number.")] = None,
    reason: Reason = None,
    as_json: Json = False,
) -> None:
    """Put an earlier champion back; `previous` follows."""
    if to is not None and steps != 1:
        raise ValueError("give --steps or --to, not both")
    from sana_sprint.registry import promote as promotion

    client = server()
    model = chosen(client, name, size)
    was, now, entry = promotion.rollback(client, model, steps, to, reason or "no reason given")
    if as_json:
        console.emit({"name": model, "champion_before": was, "champion": now, "entry": entry.public()})
    else:
        typer.echo(f"{model}: champion is version {now} again (was {was})")


@with_example("sana-sprint history sana-sprint-demo-base", "sana-sprint history --json")
def history(name: Name = None, size: Size = None, as_json: Json = False) -> None:
    """List every move of a model's champion, or of all models of the profile."""
    from sana_sprint.registry import history as histories
    from sana_sprint.registry import versions

    client, told = server(), []
    for model in several(client, name, size):
        chain = histories.read(client, model)
        present = versions.version_of(client, model, versions.CHAMPION)
        champion = str(present.version) if present else None
        told.append({"name": model, "champion": champion, "earlier": chain.earlier, "entries": _entries(chain)})
        if not as_json:
            _history(model, champion, chain)
    if as_json:
        console.emit(told)


def _entries(chain: Chain) -> list[dict[str, Any]]:
    return [entry.public() for entry in chain.entries]


def _history(model: str, champion: str | None, chain: Chain) -> None:
    """Prints the history of a model; of the events of before there were entries, what is known of them."""
    rows = [
        ["-", _instant(e["at"]), e["action"], e["before"] or "none", e["version"], e["user"], "", ""]
        for e in chain.earlier
    ]
    for entry in chain.entries:
        said = entry.public()
        why = said.get("why", "")
        if not why:
            why = "unreadable: see `sana-sprint audit`"
        elif said["void"]:
            why = "void: another entry came first"
        elif said.get("forced"):
            why = f"by force: {why}"
        words = [said.get(key) or "none" for key in ("action", "from", "to", "user")]
        at = _instant(said.get("at", "none"))
        rows.append([str(entry.number), at, *words, _counted(said.get("gates", [])), why])
    title = f"{model}, champion: {'version ' + champion if champion else 'none'}"
    console.table(title, ["entry", "at (UTC)", "action", "from", "to", "by", "gates", "why"], rows)


def _instant(text: str) -> str:
    """Returns a time without its zone, which the title of its column names."""
    return text.removesuffix("+00:00").replace("T", " ")


def _counted(gates: list[dict[str, Any]]) -> str:
    """Returns how many gates held and how many did not: `14 hold, 1 fails`; nothing of a move without gates."""
    counts = Counter(str(gate["outcome"]) for gate in gates)
    told = {"holds": ("holds", "hold"), "fails": ("fails", "fail"), "waived": ("waived", "waived")}
    told |= {"unread": ("cannot be read", "cannot be read")}
    return ", ".join(f"{counts[kind]} {words[counts[kind] > 1]}" for kind, words in told.items() if counts[kind])


@with_example("sana-sprint audit sana-sprint-demo-base --files", "sana-sprint audit --contains 3f9c0d2b61aa")
def audit(
    name: Name = None,
    size: Size = None,
    files: Annotated[
        bool, typer.Option("--files", help="Also read the files of every version that the history names.")
    ] = False,
    contains: Annotated[str | None, typer.Option(help="A digest, or its beginning, that must be there.")] = None,
    finish: Annotated[bool, typer.Option("--finish", help="First finish a move that was left in the middle.")] = False,
    as_json: Json = False,
) -> None:
    """Check the history entry by entry, and that aliases and versions are what it says; exit code 3 if not."""
    if contains is not None and not contains.strip():
        raise ValueError("--contains is empty: give a digest that audit or promote printed, or its beginning")
    from sana_sprint.registry import audit as audits

    client = server()
    models = several(client, name, size)
    bad = [] if name or size else audits.orphans(client, profile_names())
    if not models and not bad:
        raise ValueError(NONE)
    told, known = [], set[str]()
    for model in models:
        chain, one = _audited(client, model, files, finish)
        told.append(one)
        known |= {entry.digest for entry in chain.entries}
        bad += [f"{model}: {fault['fault']}" for fault in one["faults"]]
        if not as_json:
            _tell_audit(one)
    if contains is not None and not any(digest.startswith(contains) for digest in known):
        bad.append(f"no entry of {', '.join(models) or 'any model'} has the digest {contains}")
    if as_json:
        console.emit(told)
    if bad:
        console.refuse("; ".join(bad))


def _audited(client: MlflowClient, model: str, files: bool, finish: bool) -> tuple[Chain, dict[str, Any]]:
    """Returns a model's history, and what the audit tells of it."""
    from sana_sprint.registry import audit as audits
    from sana_sprint.registry import moves

    if finish:
        moves.settle(client, model)
    chain, faults = audits.audit(client, model, files)
    head = chain.entries[-1].digest if chain.entries else None
    found = [{"entry": fault.entry, "fault": _fault(fault)} for fault in faults]
    told = {"name": model, "entries": len(chain.entries), "whole": not faults, "digest": head, "faults": found}
    return chain, told | {"notes": audits.unlisted(client, chain) if files else []}


def _tell_audit(one: dict[str, Any]) -> None:
    head = one["digest"] or "none"
    typer.echo(f"{one['name']}: {one['entries']} entries, {len(one['faults'])} faults, head {head}")
    for note in one["notes"]:
        typer.echo(f"{one['name']}: {note}")


def _fault(fault: Fault) -> str:
    return fault.text if fault.entry is None else f"entry {fault.entry} {fault.text}"
