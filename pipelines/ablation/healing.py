"""How long healing must be: data/models/teacher, data/models/judge, data/latents, data/raw
-> data/reports/healing/{curve.json, table.md, curve.png, index.html}. Every size is cut as stage prune cuts it and
healed anew for each length, each with its whole schedule, then scored beside the teacher on the same prompts."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sana_sprint import config, storage

if TYPE_CHECKING:
    from sana_sprint.data.loader import Latents
    from sana_sprint.evaluation.quick import Score

OUT = Path("data/reports/healing")
TEACHER = Path("data/models/teacher")


def main() -> None:
    """Heals and scores every size and length."""
    from sana_sprint.data.loader import Latents
    from sana_sprint.evaluation import pages, plots, quick
    from sana_sprint.models import bundle, threads

    threads.use_fastest()
    wanted = config.read(Path("pipelines/ablation/variants.yaml"))["healing"]
    params, data = config.load(config.Prune), Latents(Path("data/latents"), "train")
    judged, sampling, sigma_d = (
        config.load(config.Evaluate),
        config.load(config.Sampling),
        config.load(config.TrigFlow).sigma_d,
    )
    score = quick.Score(
        judged, sampling, sigma_d, TEACHER, Path("data/raw"), Path("data/models/judge"), wanted["prompts"]
    )
    teacher = score.of_teacher(bundle.load_transformer(TEACHER))
    found = {size: healed(size, params, wanted["steps"], data, score) for size in params.sizes}
    storage.write_json(OUT / "curve.json", {"teacher": teacher, "sizes": found})
    storage.write_text(OUT / "table.md", table(teacher, found, wanted["steps"]))
    overall = {size: {"overall": [[steps, s["overall"]] for steps, s in scores]} for size, scores in found.items()}
    level = {"overall": [[steps, teacher["overall"]] for steps in wanted["steps"]]}
    plots.compared({"teacher": level} | overall, ("overall",), OUT / "curve.png")
    words = "Overall score of the healed network at the teacher's step count, and its share of the teacher's score."
    page = table(teacher, found, wanted["steps"])
    pages.write_experiment(OUT / "index.html", "Score against healing steps", words, page, [OUT / "curve.png"])
    print((OUT / "table.md").read_text())


def healed(
    size: str, params: config.Prune, lengths: list[int], data: "Latents", score: "Score"
) -> list[tuple[int, dict[str, Any]]]:
    """Returns (steps, scores at the teacher's step count) of a size for every length of its healing."""
    from sana_sprint.models import bundle
    from sana_sprint.training import shrink

    cut, _ = shrink.cut(params, params.sizes[size], bundle.load_transformer(TEACHER), data)
    scores = []
    for steps in lengths:
        healing = params.healing.model_copy(update={"steps": steps})
        network = copy.deepcopy(cut)
        if steps:
            network = shrink.heal(
                params.model_copy(update={"healing": healing}), f"{size} {steps} steps", network, TEACHER, data, []
            )
        scores.append((steps, score.of_student(network)))
        print(f"healing {size} {steps} steps: {scores[-1][1]}", flush=True)
    return scores


def table(teacher: dict[str, Any], found: dict[str, list[tuple[int, dict[str, Any]]]], lengths: list[int]) -> str:
    """Returns scores and their share of the teacher's as Markdown."""
    lines = [
        "| network | " + " | ".join(f"{steps} steps" for steps in lengths) + " |",
        "|" + "---|" * (len(lengths) + 1),
    ]
    for size, scores in found.items():
        cells = [
            f"{s['overall']:.3f} ± {s['overall_se']:.3f} ({s['overall'] / teacher['overall']:.2f})" for _, s in scores
        ]
        lines.append(f"| {size} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + f"\n\nteacher: {teacher['overall']:.3f} ± {teacher['overall_se']:.3f}\n"


if __name__ == "__main__":
    main()
