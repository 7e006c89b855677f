"""The commands of `sana-sprint` that carry something to a store or a receiver: transfer, follow, send."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sana_sprint import cli_registry, console
from sana_sprint.cli_registry import Name, Size
from sana_sprint.console import Json, with_example
from sana_sprint.registry import lineage


@with_example("sana-sprint transfer models:/sana-sprint-demo-base@champion --to https://mlflow.prod.example")
def transfer(
    version: Annotated[str, typer.Argument(help="models:/name@alias or models:/name/number of the store in use.")],
    to: Annotated[str, typer.Option(help="Tracking URI of the other store.")],
    name: Annotated[str | None, typer.Option(help="Name of the model there; default: the same.")] = None,
    alias: Annotated[str, typer.Option(help="Alias that the version gets there.")] = "challenger",
    as_json: Json = False,
) -> None:
    """Copy a version to another registry with card, lineage, scores and past; digests are compared after the copy.

    Who one is there is SANA_SPRINT_TARGET_USERNAME and SANA_SPRINT_TARGET_PASSWORD, and for its object store
    SANA_SPRINT_TARGET_S3_ENDPOINT_URL, SANA_SPRINT_TARGET_AWS_ACCESS_KEY_ID and
    SANA_SPRINT_TARGET_AWS_SECRET_ACCESS_KEY; what is not set is the same as here.
    """
    from sana_sprint.registry import transfer as transfers

    moved = transfers.transfer(cli_registry.server(), version, to, name, alias)
    if as_json:
        console.emit(moved)
        return
    place = f"{moved['to']['name']} version {moved['to']['version']} in {moved['to']['store']}"
    how = "copied to" if moved["new"] else "is there already:"
    typer.echo(f"{version} {how} {place}, alias {alias}; {moved['entries']} entries of its past went with it")


@with_example(
    "sana-sprint follow sana-sprint-demo-base --url https://hooks.example/champion --state /var/lib/champion.json",
    "sana-sprint follow --size base --command 'systemctl reload student' --every 10",
)
def follow(
    name: Name = None,
    size: Size = None,
    url: Annotated[str | None, typer.Option(help="POST events there, signed by SANA_SPRINT_WEBHOOK_SECRET.")] = None,
    command: Annotated[str | None, typer.Option(help="Run this; the event is on its stdin.")] = None,
    alias: Annotated[str, typer.Option(help="Alias to follow.")] = "champion",
    every: Annotated[float, typer.Option(help="Seconds between looks.", min=0.1)] = 5.0,
    tries: Annotated[int, typer.Option(help="Tries of an event before the next look.", min=1)] = 5,
    state: Annotated[Path | None, typer.Option(help="File that keeps what was told, across restarts.")] = None,
    tell_first: Annotated[
        bool, typer.Option("--tell-first", help="Without a state: also tell where the alias is now.")
    ] = False,
    once: Annotated[
        bool,
        typer.Option(
            "--once", help="Look once and end; exit code 1 if an event was not taken or no version has the alias."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Tell a receiver or a command whenever the champion moves, whatever the store; --json prints a line per event."""
    if (url is None) == (command is None):
        raise ValueError("give --url or --command: where events go")
    from sana_sprint.registry import follow as following
    from sana_sprint.registry import webhook

    deliver = following.to_url(url, webhook.secret()) if url else following.to_command(command or "")
    client = cli_registry.server()
    follower = following.Follower.begin(client, cli_registry.chosen(client, name, size), alias, state, tell_first)
    for event in following.follow(follower, deliver, every, tries, once):
        became = "told" if event["delivered"] else f"not taken after {event['tries']} tries: {event['fault']}"
        if as_json:
            typer.echo(json.dumps(event))
        else:
            moved = f"{event['from'] or 'none'} -> {event['to'] or 'none'}"
            typer.echo(f"{event['at']} {event['name']}@{alias} {moved}: {became}")
        if once and not event["delivered"]:
            raise ValueError(f"{event['name']}: the event was {became}")


@with_example("sana-sprint send", "sana-sprint send --json")
def send(as_json: Json = False) -> None:
    """Send what stages left for the tracking server while it was away; the next stage does it too."""
    from sana_sprint.registry import outbox, store

    root, client = lineage.repository(), cli_registry.server(make=True)
    uri = client.tracking_uri
    sent, others = outbox.send(root, uri), outbox.elsewhere(root, uri)
    if as_json:
        console.emit({"store": store.shown(uri), "runs": sent, "waiting_for_other_stores": others})
    else:
        whole = [outbox.told(one, uri) for one in sent if not one["unsent"]]
        lines = whole if sent else [f"nothing waits for {store.shown(uri)}"]
        lines += [f"{count} records wait for {place}: set MLFLOW_TRACKING_URI to it" for place, count in others.items()]
        typer.echo("\n".join(lines), nl=bool(lines))
    unsent = [one for one in sent if one["unsent"]]
    if unsent:
        count = sum(one["unsent"] for one in unsent)
        raise ValueError(f"{count} records are not in {store.shown(uri)} ({unsent[0]['why']:.300})")
