"""The commands of `sana-sprint` that draw and measure outside the pipeline: synthesize, sample, score and compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sana_sprint import config, console, storage
from sana_sprint.console import Json, with_example
from sana_sprint.registry import lineage

SCORED = Path("data/scores")
ProtocolFile = Annotated[Path, typer.Argument(help="A file of profiles/protocols.")]


@with_example("sana-sprint synthesize prompts.txt data/source/mine --teacher data/models/foundation --per-prompt 4")
def synthesize(
    prompts: Annotated[Path, typer.Argument(help="A text file with a prompt a line.")],
    folder: Annotated[Path, typer.Argument(help="Where pictures and captions go: data/source/<profile>.")],
    teacher: Annotated[Path, typer.Option(help="A SanaPipeline folder.")],
    per_prompt: Annotated[int, typer.Option(help="Pictures of each prompt.")] = 1,
    seed: Annotated[int, typer.Option(help="The same seed draws the same pictures.")] = 0,
    as_json: Json = False,
) -> None:
    """Draw a corpus with a teacher, for prompts without pictures; what is there already is not drawn again. Steps,
    guidance and size are those of the profile's section sampling."""
    from sana_sprint.evaluation import generate, synthesis
    from sana_sprint.registry import trust

    trust.check_given(generate.checked(teacher))

    root = lineage.repository()
    mixed = config.load(config.Teacher, root).precision == "bf16-mixed"
    asked = synthesis.Asked(prompts, teacher, per_prompt, seed, "bf16-mixed" if mixed else "float32")
    drawn, there = synthesis.run(asked, config.load(config.Sampling, root), folder)
    told = {"folder": str(folder), "pictures": there, "drawn": drawn, "teacher": str(teacher)}
    console.tell(told, f"{folder}: {there} pictures, {drawn} of them drawn now, by {teacher}", as_json)


@with_example("sana-sprint sample profiles/protocols/geneval.yaml pictures --steps 2 --size base")
def sample(
    protocol: ProtocolFile,
    folder: Annotated[Path, typer.Argument(help="Where the pictures go, in the layout that `score` reads.")],
    steps: Annotated[int, typer.Option(help="Network passes: 1 to 4.")] = 4,
    model: Annotated[str | None, typer.Option(help="A pipeline folder or models:/name@alias.")] = None,
    size: Annotated[str | None, typer.Option(help="Student size, such as small or base.")] = None,
    as_json: Json = False,
) -> None:
    """Draw the pictures of a protocol with a student; what is there already is not drawn again."""
    from sana_sprint.registry import draw

    place, called = draw.folder_of(model, size)
    from sana_sprint.evaluation import folder_draw

    drawn, there = folder_draw.run(protocol, place, folder, steps, lineage.repository())
    told = {"folder": str(folder), "pictures": there, "drawn": drawn, "steps": steps, "model": called}
    line = f"{folder}: {there} pictures, {drawn} of them drawn now, {steps} steps, by {called}"
    console.tell(told, line, as_json)


@with_example("sana-sprint score profiles/protocols/geneval.yaml pictures --out scores")
def score(
    protocol: ProtocolFile,
    folder: Annotated[Path, typer.Argument(help="The pictures: GenEval's layout, or <category>/<name>.png.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write into; default: one of its own in data/scores.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Score a folder of pictures, made here or elsewhere, under a protocol."""
    from sana_sprint.evaluation import folder_geneval, folder_page, folder_scores

    root = lineage.repository()
    of_place = storage.digest_of(str(folder.resolve()))[:8]  # folders of one name lie in many places
    place = out or root / SCORED / f"{protocol.stem}-{folder.resolve().name}-{of_place}"
    found = folder_scores.run(protocol, folder, root / "data/cache/score", root)
    if looked := found.pop("looked", None):
        storage.write_text(place / "results.jsonl", folder_geneval.results_lines(looked))
        folder_page.write(place / "index.html", folder.resolve(), found, looked)
    storage.write_json(place / "scores.json", found)
    if as_json:
        console.emit({"file": str(place / "scores.json")} | found)
        return
    parts = [*found["scores"].items(), *found["scores"].get("tasks", {}).items()]
    rows = [[name, f"{part['value']:.4f}", f"{part['se']:.4f}"] for name, part in parts if "value" in part]
    title = f"{folder}: {found['pictures']} pictures, protocol {found['protocol_digest'][:12]}"
    console.table(title, ["score", "value", "standard error"], rows)
    typer.echo(f"{place / 'scores.json'}")


@with_example(
    "sana-sprint compare models:/sana-sprint-demo-base@champion workspace --page two.html",
    "sana-sprint compare HEAD~1 HEAD --json",
)
def compare(
    before: Annotated[
        str, typer.Argument(help="workspace, a git revision, models:/name@alias, runs:/id, or evaluate's JSON.")
    ],
    after: Annotated[str, typer.Argument(help="The same; differences are those from the first.")] = "workspace",
    size: Annotated[str, typer.Option(help="Student size of a revision or the workspace.")] = "base",
    page: Annotated[Path | None, typer.Option(help="An HTML page to write: scores, tasks, pictures.")] = None,
    as_json: Json = False,
) -> None:
    """Compare two evaluations score by score, and picture by picture on a page."""
    from sana_sprint.registry import compare as comparison

    one, other = (comparison.load(word, size, lineage.repository()) for word in (before, after))
    rows = comparison.table(one, other)
    if not rows:
        raise ValueError(
            f"{one.name} and {other.name} have no score in common: they were judged by different judges or at other "
            "steps; name two evaluations of one profile"
        )
    columns = ["network", "steps", "score", one.name, other.name, "difference"]
    if as_json:
        console.emit(comparison.public(one, other))
    else:
        console.table(f"{one.name} against {other.name}", columns, rows)
        typer.echo(comparison.told(one, other))
    if page:
        from sana_sprint.evaluation import comparison as paper

        grids = [paper.grid(each.name, each.seen, each.picture) for each in (one, other)]
        scores = [(each.name, each.scores) for each in (one, other)]
        paper.write(page, comparison.told(one, other), {"head": columns, "rows": rows}, scores, grids)
        if not as_json:
            typer.echo(str(page))
