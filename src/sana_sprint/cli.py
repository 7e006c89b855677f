"""The console command `sana-sprint`: generate, use, recover, summary; of cli_scores synthesize, sample, score, compare;
of cli_registry promote, rollback, history, audit; of cli_deliver transfer, follow, send; of cli_lineage register,
lineage, uses. The command that needs a framework imports it."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sana_sprint import cli_deliver, cli_lineage, cli_registry, cli_scores, config, console, recovery, storage
from sana_sprint.cli_registry import Size
from sana_sprint.console import Json, with_example
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
    as_json: Json = False,
) -> None:
    """Draw a picture with the champion, or with the newest student when there is no champion."""
    if not prompt.strip():
        raise ValueError("the prompt is empty: say what to draw")
    from sana_sprint.registry import draw

    folder, called = draw.folder_of(model or _champion(size), size)
    picture = draw.picture(folder, prompt, steps, seed, guidance)
    target = out or Path(file_name(prompt, steps, seed))
    with storage.whole_file(target) as unfinished:
        picture.save(unfinished, format="PNG")
    drawn = {"file": str(target), "width_px": picture.width, "height_px": picture.height}
    drawn |= {"steps": steps, "seed": seed, "model": called}
    line = f"{target}: {picture.width} x {picture.height} px, {steps} steps, seed {seed}, by {called}"
    console.tell(drawn, line, as_json)


def _champion(size: str | None) -> str | None:
    """Returns the address of the champion to draw with, None where there is none."""
    from sana_sprint.registry import draw, store

    if store.absent(store.tracking_uri()):
        return None
    server = cli_registry.server()
    return draw.champion(server, cli_registry.names(server), size)


@with_example("sana-sprint use digits")
def use(
    profile: Annotated[str, typer.Argument(help="A file of profiles/, such as digits.")], as_json: Json = False
) -> None:
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
    source = _source(profile, root)
    lines = [f"{source['folder']}: {source['told']}"] if source else []
    lines.append(f"profile: {profile}; `dvc repro` makes its models")
    console.tell({"profile": profile, "source": source}, "\n".join(lines), as_json)


def _source(profile: str, root: Path) -> dict[str, str] | None:
    """Sees to the profile's source folder: the digits are written out, a user's own folder is his to fill. Returns the
    folder and what is told of it, None where there is nothing to tell."""
    place = root / "data/source" / profile
    source = config.load(config.Prepare, root).source
    empty = not place.is_dir() or not any(p.name != ".gitkeep" for p in place.iterdir())
    if source.kind == "scenes" or not empty:
        return None
    told = "put your pictures there before `dvc repro`"
    if profile == "digits":
        from sana_sprint.data import digits

        digits.write(place)
        told = "written"
    return {"folder": str(place.relative_to(root)), "told": told}


@with_example("sana-sprint recover")
def recover(as_json: Json = False) -> None:
    """Put right the files of DVC that a kill has cut; `dvc repro` then goes on."""
    lines = recovery.recover(lineage.repository())
    console.tell({"put_right": lines}, "\n".join(lines), as_json)


@with_example("sana-sprint summary", "sana-sprint summary --json")
def summary(as_json: Json = False) -> None:
    """Tell what `dvc repro` made: places, scores, registered versions, next commands."""
    root = lineage.repository()
    from sana_sprint.registry import store

    scores = _scores(root)
    versions = [storage.read_json(file) for file in sorted((root / REGISTRATIONS).glob("*.json"))]
    if as_json:
        registered = [{key: one[key] for key in ("name", "version", "alias")} for one in versions]
        places = {"report": str(root / REPORT), "picture_grids": str(root / GRIDS)}
        places |= {"mlflow_store": store.shown(store.tracking_uri(root))}
        console.emit({"profile": config.profile(root)} | places | {"scores": scores, "registered": registered})
        return
    typer.echo(f"\nprofile {config.profile(root)}")
    typer.echo(f"  report         {root / REPORT}")
    typer.echo(f"  picture grids  {root / GRIDS}")
    typer.echo(f"  MLflow store   {store.shown(store.tracking_uri(root))}\n")
    columns = ["size", "network", "steps", "score", "value"]
    console.table("scores, value ± standard error", columns, _score_rows(scores))
    for one in versions:
        typer.echo(f"registered: {one['name']} version {one['version']}, alias {one['alias']}")
    called = _called()
    typer.echo("\nnext:\n  make ui")
    if versions:
        typer.echo(f"  {called} promote {versions[0]['name']}")
    typer.echo(f'  {called} generate "{_prompt(root)}" --steps 1')


def _scores(root: Path) -> list[dict[str, Any]]:
    """Returns the first score of teacher and students at each step count. Raises ValueError when there are none."""
    found = []
    for file in sorted((root / SCORES).glob("*.json")):
        scores = storage.read_json(file)["scores"]
        shown = [("teacher", steps) for steps in scores.get("teacher", {})]
        shown += [("student", steps) for steps in ("1", "2", "4") if steps in scores["student"]]
        for who, steps in shown:
            key = "overall" if "overall" in scores[who][steps] else "clip_score"
            one = {"size": file.stem, "network": who, "steps": steps, "score": key}
            found.append(one | (scores[who][steps].get(key) or {"value": None, "se": None}))
    if not found:
        raise ValueError(f"{root / SCORES}: no scores there; run `dvc repro` first")
    return found


def _score_rows(scores: list[dict[str, Any]]) -> list[list[str]]:
    from sana_sprint.registry import card

    columns = ("size", "network", "steps", "score")
    return [[*(one[key] for key in columns), card.score(one if one["value"] is not None else None)] for one in scores]


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
