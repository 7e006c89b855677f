"""The console command `sana-sprint`: generate, use, recover, summary; of cli_scores sample, score, compare; of
cli_registry promote, rollback, history, audit; of cli_deliver transfer, follow, send; of cli_lineage lineage, uses. The
command that needs a framework imports it."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from sana_sprint import cli_deliver, cli_lineage, cli_registry, cli_scores, config, console, recovery, storage
from sana_sprint.cli_registry import Size
from sana_sprint.console import with_example
from sana_sprint.registry import lineage

app = console.app
__all__ = ["app", "cli_deliver", "cli_lineage", "cli_registry", "cli_scores", "main"]  # these add their commands to app
SCORES = Path("data/metrics/evaluate")
REGISTRATIONS = Path("data/reports/registration")
REPORT, GRIDS = Path("data/reports/index.html"), Path("data/grids")


def file_name(prompt: str, steps: int, seed: int) -> str:
    """Returns a file name that tells prompt, steps and seed."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "picture"
    return f"{words}-{steps}-steps-seed-{seed}.png"


@with_example('sana-sprint generate "two red circles" --steps 1 --seed 3 --out circles.png')
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

    server = cli_registry.server()
    names = [] if model else cli_registry.names(server)
    folder, called = draw.folder_of(model or draw.champion(server, names, size), size)
    picture = draw.picture(folder, prompt, steps, seed, guidance)
    target = out or Path(file_name(prompt, steps, seed))
    with storage.whole_file(target) as unfinished:
        picture.save(unfinished, format="PNG")
    typer.echo(f"{target}: {picture.width} x {picture.height} px, {steps} steps, seed {seed}, by {called}")


@with_example("sana-sprint use digits")
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


@with_example("sana-sprint recover")
def recover() -> None:
    """Put right the files of DVC that a kill has cut; `dvc repro` then goes on."""
    for line in recovery.recover(lineage.repository()):
        typer.echo(line)


@with_example("sana-sprint summary")
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
