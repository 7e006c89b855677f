"""The commands of `sana-sprint` on where versions come from: register of a folder made elsewhere, lineage, uses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from sana_sprint import cli_registry, config, console
from sana_sprint.console import Json, with_example
from sana_sprint.registry import lineage as places


@with_example(
    'sana-sprint register downloads/student --name mine --licence MIT --description "made by ..." '
    "--part-licence text_encoder=gemma --part-licence data=CC-BY-4.0",
    "sana-sprint register student --name mine --licence NSCL-v2-custom --licence-link https://terms.example "
    '--description "made by ..." --data "CC12M" --training "LADD, 20,000 iterations" --scores small.json',
)
def register(
    folder: Annotated[Path, typer.Argument(help="A SanaSprintPipeline folder.")],
    name: Annotated[str, typer.Option(help="The registered model that gets the version.")],
    licence: Annotated[str, typer.Option(help="Of the weights, as SPDX names it, else by its own name.")],
    description: Annotated[str, typer.Option(help="What it is, for its card.")],
    scores: Annotated[Path | None, typer.Option(help="Evaluate's JSON; without it no gate of scores holds.")] = None,
    licence_link: Annotated[str | None, typer.Option(help="Where the terms of a licence beyond SPDX are.")] = None,
    part_licence: Annotated[
        list[str] | None,
        typer.Option(help="PART=LICENCE of text_encoder, autoencoder, transformer or data; may be repeated."),
    ] = None,
    data: Annotated[str | None, typer.Option(help="What it was trained on, for its card.")] = None,
    training: Annotated[str | None, typer.Option(help="How it was trained, for its card.")] = None,
    as_json: Json = False,
) -> None:
    """Register a student that was made elsewhere; it becomes the challenger of its model."""
    from sana_sprint.registry import foreign, track
    from sana_sprint.registry import register as registration

    root = places.repository()
    sampling, parts = config.load(config.Sampling, root), foreign.part_licences(part_licence or [])
    student = foreign.student(folder, name, licence, licence_link, description, scores, sampling, parts)
    told = {"Data": data, "Training": training}
    student = replace(student, told={section: text for section, text in told.items() if text})
    cli_registry.server(make=True)  # a stage waits for a server that is away; who types this is told at once
    with track.stage("register elsewhere") as run:
        made = registration.enter(student, run)
    if as_json:
        console.emit(made)
    else:
        said = "registered" if made["new"] else "the same weights are registered already"
        typer.echo(f"{name} version {made['version']}, alias {made['alias']}: {said}")


@with_example(
    "sana-sprint lineage models:/sana-sprint-demo-base@champion",
    "sana-sprint lineage models:/sana-sprint-demo-base/3 --checkout",
)
def lineage(
    version: Annotated[str, typer.Argument(help="models:/name@alias or models:/name/number.")],
    checkout: Annotated[
        bool, typer.Option("--checkout", help="Also put code and data of this repository back to where it was made.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Tell what a version was made from: code, data, parameters, runs, machine, packages, other registries."""
    from sana_sprint.registry import ancestry, versions

    client = cli_registry.server()
    found = versions.resolve(client, version)
    told = ancestry.of_version(client, found)
    if root := places.repository_or_none():
        told["data"]["committed"] = ancestry.committed(root, found)
    if checkout:
        told["checked_out"] = ancestry.checkout(places.repository(), found)
    if as_json:
        console.emit(told)
    else:
        console.tree(told.pop("version"), ancestry.in_words(told))


@with_example("sana-sprint uses data/raw", "sana-sprint uses c07c295ead54f32afbc3d796f94a0ea6.dir --json")
def uses(
    path: Annotated[
        str,
        typer.Argument(
            help="An output or a source of the pipeline, a digest that dvc.lock has or had for one, or the sha256 "
            "of a data manifest, as lineage and cards tell it."
        ),
    ],
    as_json: Json = False,
) -> None:
    """List every run and version that was made from some data."""
    from sana_sprint.registry import ancestry, origin

    root = places.repository()
    if origin.is_sha256(path):
        found, digest = ancestry.uses_of_manifest(cli_registry.server(), path), path
    else:
        digest = path if origin.is_digest(path) else origin.digest_of(root, path)
        found = ancestry.uses(cli_registry.server(), digest)
    if as_json:
        console.emit({"digest": digest} | found)
        return
    versions = [
        [one["name"], one["version"], ", ".join(one["aliases"]), one["git_commit"][:12]] for one in found["versions"]
    ]
    console.table(f"versions made from {path} ({digest})", ["model", "version", "aliases", "git commit"], versions)
    runs = [[one["name"], one["run"], one["status"], one["git_commit"][:12]] for one in found["runs"]]
    console.table(
        f"runs that read it, or what was made of it: {len(runs)}", ["run", "id", "status", "git commit"], runs
    )
