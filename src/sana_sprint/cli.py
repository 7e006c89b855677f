"""The console command `sana-sprint`: generate, promote, rollback, history, use, recover, summary, and of cli_scores
sample, score, compare. Frameworks are imported by the command that needs them."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sana_sprint import cli_scores, config, console, recovery, storage
from sana_sprint.console import command
from sana_sprint.registry import lineage

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

app = console.app
__all__ = ["app", "cli_scores", "main"]  # cli_scores adds its commands to app
SCORES = Path("data/metrics/evaluate")
REGISTRATIONS = Path("data/reports/registration")
REPORT, GRIDS = Path("data/reports/index.html"), Path("data/grids")
Size = Annotated[str | None, typer.Option(help="Student size, such as small or base.")]
Name = Annotated[str | None, typer.Argument(help="Registered model; default: the profile's model of --size.")]


def _server() -> MlflowClient:
    from sana_sprint.registry import store

    return store.client(store.tracking_uri())


def _names(server: MlflowClient) -> list[str]:
    """Returns the registered models of the profile in use."""
    root = lineage.repository()
    prefix, sizes = config.load(config.Register, root).model_name, config.load(config.Prune, root).sizes
    found = server.search_registered_models(f"name LIKE '{prefix}-%'")  # those of the profile demo-long too
    return sorted({str(model.name) for model in found} & {f"{prefix}-{size}" for size in sizes})


def _name(server: MlflowClient, name: str | None, size: str | None) -> str:
    """Returns the model that is meant. Raises ValueError listing the choice when it is not clear."""
    if name:
        return name
    if size:
        return f"{config.load(config.Register, lineage.repository()).model_name}-{size}"
    names = _names(server)
    if len(names) == 1:
        return names[0]
    choice = f"name one of {', '.join(names)}" if names else "none is registered; run `dvc repro` first"
    raise ValueError(f"which model? {choice}, or give --size")


def file_name(prompt: str, steps: int, seed: int) -> str:
    """Returns a file name that tells prompt, steps and seed."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "picture"
    return f"{words}-{steps}-steps-seed-{seed}.png"


@command
def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw, in the words of the training captions.")],
    steps: Annotated[int, typer.Option(help="Network passes: 1 to 4.")] = 4,
    seed: Annotated[int, typer.Option(help="The same seed draws the same picture.")] = 0,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; default: the model's own.")] = None,
    size: Size = None,
    model: Annotated[str | None, typer.Option(help="A pipeline folder or models:/name@alias.")] = None,
    out: Annotated[Path | None, typer.Option(help="PNG to write; default: named after the prompt.")] = None,
) -> None:
    """Draw a picture with the champion, or with the newest student when there is no champion."""
    if not prompt.strip():
        raise ValueError("the prompt is empty: say what to draw")
    from sana_sprint.registry import draw

    names = [] if model else _names(_server())
    folder, called = draw.folder_of(model or draw.champion(_server(), names, size), size)
    picture = draw.picture(folder, prompt, steps, seed, guidance)
    target = out or Path(file_name(prompt, steps, seed))
    with storage.whole_file(target) as unfinished:
        picture.save(unfinished, format="PNG")
    typer.echo(f"{target}: {picture.width} x {picture.height} px, {steps} steps, seed {seed}, by {called}")


@command
def promote(
    name: Name = None,
    size: Size = None,
    version: Annotated[str | None, typer.Option(help="Version number; default: the challenger.")] = None,
) -> None:
    """Make a version the champion if every gate of mlflow/promotion.yaml holds; exit code 1 if not."""
    from sana_sprint.registry import promote as gates

    rules = gates.policy(lineage.repository() / "mlflow" / "promotion.yaml")
    server = _server()
    verdict = gates.promote(server, _name(server, name, size), rules, version)
    rows = [[gate.name, gate.value, gate.bound, "holds" if gate.holds else "fails"] for gate in verdict.gates]
    console.table(f"{verdict.name} version {verdict.version}", ["gate", "value", "bound", "verdict"], rows)
    if not verdict.holds:
        stays = f"champion stays version {verdict.before}" if verdict.before else "there is still no champion"
        called = f"{verdict.name} version {verdict.version}"
        raise ValueError(f"{called} is not promoted, {stays}: {verdict.reasons}")
    if verdict.before == verdict.version:
        typer.echo(f"{verdict.name}: version {verdict.version} is the champion already")
    else:
        typer.echo(f"{verdict.name}: champion is now version {verdict.version} (was {verdict.before or 'none'})")


@command
def rollback(name: Name = None, size: Size = None) -> None:
    """Put the champion before the present one back."""
    from sana_sprint.registry import promote as gates

    server = _server()
    model = _name(server, name, size)
    was, now = gates.rollback(server, model)
    typer.echo(f"{model}: champion is version {now} again (was {was})")


@command
def history(name: Name = None, size: Size = None) -> None:
    """List the promotions and rollbacks of a model, or of all models of the profile."""
    from sana_sprint.registry import promote as gates

    server = _server()
    for model in [_name(server, name, size)] if name or size else _names(server):
        events = gates.history(server, model)
        present = gates.version_of(server, model, gates.CHAMPION)
        title = f"{model}, champion: {'version ' + str(present.version) if present else 'none'}"
        rows = [[e["at"], e["action"], e["before"] or "none", e["version"], e["user"]] for e in events]
        console.table(title, ["at (UTC)", "action", "from version", "to version", "by"], rows)


@command
def use(profile: Annotated[str, typer.Argument(help="A file of profiles/, such as digits.")]) -> None:
    """Switch the profile in params.yaml."""
    root = lineage.repository()
    known = config.known_profiles(root / "profiles")
    if profile not in known:
        raise ValueError(f"no profile '{profile}'; there are: {', '.join(known)}")
    from ruamel.yaml import YAML

    yaml = YAML()
    content = yaml.load((root / "params.yaml").read_text())
    if content.get("profile") != profile:
        content["profile"] = profile
        with storage.whole_file(root / "params.yaml") as unfinished, unfinished.open("w") as file:
            yaml.dump(content, file)
    _source(profile, root)
    typer.echo(f"profile: {profile}; `dvc repro` makes its models")


def _source(profile: str, root: Path) -> None:
    """Sees to the profile's source folder: the digits are written out, a user's own folder is his to fill."""
    place = root / "data/source" / profile
    source = config.load(config.Prepare, root).source
    empty = not place.is_dir() or not any(p.name != ".gitkeep" for p in place.iterdir())
    if source.kind == "scenes" or not empty:
        return
    if profile == "digits":
        from sana_sprint.data import digits

        digits.write(place)
        typer.echo(f"{place.relative_to(root)}: written")
    else:
        typer.echo(f"{place.relative_to(root)}: put your pictures there before `dvc repro`")


@command
def recover() -> None:
    """Put right the files of DVC that a kill has cut; `dvc repro` then goes on."""
    for line in recovery.recover(lineage.repository()):
        typer.echo(line)


@command
def summary() -> None:
    """Tell what `dvc repro` made: places, scores, registered versions, next commands."""
    root = lineage.repository()
    from sana_sprint.registry import store

    typer.echo(f"\nprofile {config.profile(root)}")
    typer.echo(f"  report         {root / REPORT}")
    typer.echo(f"  picture grids  {root / GRIDS}")
    typer.echo(f"  MLflow store   {store.shown(store.tracking_uri(root))}\n")
    columns = ["size", "network", "steps", "score", "value"]
    console.table("scores, value ± standard error", columns, _score_rows(root))
    versions = [storage.read_json(file) for file in sorted((root / REGISTRATIONS).glob("*.json"))]
    for one in versions:
        typer.echo(f"registered: {one['name']} version {one['version']}, alias {one['alias']}")
    called = _called()
    typer.echo("\nnext:\n  make ui")
    if versions:
        typer.echo(f"  {called} promote {versions[0]['name']}")
    typer.echo(f'  {called} generate "{_prompt(root)}" --steps 1')


def _score_rows(root: Path) -> list[list[str]]:
    from sana_sprint.registry import card

    rows = []
    for file in sorted((root / SCORES).glob("*.json")):
        scores = storage.read_json(file)["scores"]
        shown = [("teacher", steps) for steps in scores.get("teacher", {})]
        shown += [("student", steps) for steps in ("1", "2", "4") if steps in scores["student"]]
        for who, steps in shown:
            key = "overall" if "overall" in scores[who][steps] else "clip_score"
            rows.append([file.stem, who, steps, key, card.score(scores[who][steps].get(key))])
    if not rows:
        raise ValueError(f"{root / SCORES}: no scores there; run `dvc repro` first")
    return rows


def _called() -> str:
    """Returns how this shell calls the command: by name, or by path where the environment is not active."""
    script = Path(sys.argv[0])
    if script.stem != "sana-sprint" or shutil.which("sana-sprint"):
        return "sana-sprint"
    here = Path.cwd()
    place = script.absolute()
    return str(place.relative_to(here)) if place.is_relative_to(here) else str(place)


def _prompt(root: Path) -> str:
    """Returns a prompt that fits the profile: two red circles, or the first caption of its own data."""
    source = config.load(config.Prepare, root).source
    if source.kind == "scenes" and "red" in source.colours and "circle" in source.shapes:
        return "two red circles"
    manifest = root / "data/raw/manifest.parquet"
    if not manifest.is_file():
        return "two red circles"
    from pyarrow import parquet

    captions = parquet.read_table(manifest, columns=["caption"])["caption"]
    return str(captions[0].as_py()).replace('"', "'") if len(captions) else "two red circles"


def main() -> None:
    """Runs the console command."""
    app()


if __name__ == "__main__":
    main()
