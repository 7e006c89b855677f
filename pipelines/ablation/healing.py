"""How long healing must be: data/models/teacher, data/models/judge, data/latents, data/raw
-> data/reports/healing/{curve.json, table.md, curve.png, index.html}. Every row of variants.yaml is cut as stage prune
cuts and healed anew for each length, each with its whole schedule, scored beside the teacher on the same prompts."""

import copy
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sana_sprint import config, storage

if TYPE_CHECKING:
    from sana_sprint.data.loader import Latents
    from sana_sprint.evaluation.quick import Score

OUT = Path("data/reports/healing")
TEACHER = Path("data/models/teacher")
Row = dict[int, dict[str, float]]  # steps of healing: score and its standard error


def main() -> None:
    """Heals and scores every size and length."""
    from sana_sprint.data.loader import Latents
    from sana_sprint.evaluation import pages, plots, quick
    from sana_sprint.models import bundle, threads

    threads.use_fastest()
    wanted = config.read(Path("pipelines/ablation/variants.yaml"))["healing"]
    data, sigma_d = Latents(Path("data/latents"), "train"), config.load(config.TrigFlow).sigma_d
    judged, sampling = config.load(config.Evaluate), config.load(config.Sampling)
    raw, judge = Path("data/raw"), Path("data/models/judge")
    score = quick.Score(judged, sampling, sigma_d, TEACHER, raw, judge, wanted["prompts"])
    teacher = score.of_teacher(bundle.load_transformer(TEACHER))
    found = {name: row(name, one, data, score) for name, one in wanted["rows"].items()}
    storage.write_json(OUT / "curve.json", {"teacher": teacher, "rows": found})
    page = table(teacher, found)
    storage.write_text(OUT / "table.md", page)
    plots.compared(curves(teacher, found), ("overall",), OUT / "curve.png")
    words = "Overall score of the healed network at the teacher's step count, and its share of the teacher's score."
    pages.write_experiment(OUT / "index.html", "Score against healing steps", words, page, [OUT / "curve.png"])
    print(page)


def row(name: str, one: dict[str, Any], data: "Latents", score: "Score") -> Row:
    """Returns the scores (value, standard error) of a row for every length, each seed cut and healed anew."""
    params = config.load(config.Prune).model_copy(update=one.get("prune", {}))
    size = params.sizes[one["size"]].model_copy(update=one.get("cut", {}))
    found = [
        healed(f"{name}, seed {seed}", params.model_copy(update={"seed": seed}), size, data, score, one["steps"])
        for seed in one["seeds"]
    ]
    return {steps: spread([of_seed[steps] for of_seed in found]) for steps in one["steps"]}


def healed(
    name: str, params: config.Prune, size: config.Size, data: "Latents", score: "Score", lengths: list[int]
) -> dict[int, dict[str, float]]:
    """Returns the score at the teacher's step count for every length of healing."""
    from sana_sprint.models import bundle
    from sana_sprint.training import shrink

    cut, _ = shrink.cut(params, size, bundle.load_transformer(TEACHER), data)
    scores = {}
    for steps in lengths:
        longer = params.model_copy(update={"healing": params.healing.model_copy(update={"steps": steps})})
        network = copy.deepcopy(cut.network)
        if steps:
            again = dataclasses.replace(cut, network=network)
            network = shrink.heal(longer, f"{name}, {steps} steps", again, TEACHER, data, [])
        told = score.of_student(network)
        scores[steps] = {"value": told["overall"], "se": told["overall_se"]}
        print(f"healing {name}, {steps} steps: {told}", flush=True)
    return scores


def spread(scores: list[dict[str, float]]) -> dict[str, float]:
    """Returns the mean over seeds with its standard error; of a single seed, the error over its prompts."""
    import torch

    from sana_sprint.maths import metrics

    return scores[0] if len(scores) == 1 else metrics.mean(torch.tensor([s["value"] for s in scores]))._asdict()


def curves(teacher: dict[str, Any], found: dict[str, Row]) -> dict[str, Any]:
    """Returns a line per row over its lengths, and a level one for the teacher."""
    lengths = sorted({steps for row in found.values() for steps in row})
    lines = {name: {"overall": [[steps, s["value"]] for steps, s in row.items()]} for name, row in found.items()}
    return {"teacher": {"overall": [[steps, teacher["overall"]] for steps in lengths]}} | lines


def table(teacher: dict[str, Any], found: dict[str, Row]) -> str:
    """Returns scores and their share of the teacher's as Markdown."""
    lengths = sorted({steps for row in found.values() for steps in row})
    lines = [
        "| network | " + " | ".join(f"{steps} steps" for steps in lengths) + " |",
        "|" + "---|" * (len(lengths) + 1),
    ]
    for name, row in found.items():
        cells = [cell(row[steps], teacher["overall"]) if steps in row else "" for steps in lengths]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    level = f"teacher: {teacher['overall']:.3f} ± {teacher['overall_se']:.3f}"
    error = "± is the standard error, of several seeds that of their mean, of one that over its prompts"
    return "\n".join([*lines, "", level, "", error]) + "\n"


def cell(score: dict[str, float], teacher: float) -> str:
    """Returns a score with its error and, of a teacher that draws anything right, its share of the teacher's."""
    share = f" ({score['value'] / teacher:.2f})" if teacher else ""
    return f"{score['value']:.3f} ± {score['se']:.3f}{share}"


if __name__ == "__main__":
    main()
