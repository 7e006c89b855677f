"""Stage evaluate: params evaluate, sampling, trigflow; data/models/{student/<size>, schedule/<size>.json,
trigflow/<size>, teacher, judge}, data/raw, profiles/protocols -> data/metrics/evaluate/<size>.json, data/grids/<size>,
data/plots/{scores,tasks,pareto}-<size>.png.
"""

import argparse
from pathlib import Path

from PIL import Image

from sana_sprint import config, storage
from sana_sprint.evaluation import evaluate, folder_student, plots
from sana_sprint.models import threads
from sana_sprint.registry import track


def main() -> None:
    """Runs the stage in the repository root."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", required=True, help="a size of prune.sizes")
    size = parser.parse_args().size
    params, sampling = config.load(config.Evaluate), config.load(config.Sampling)
    trigflow = config.load(config.TrigFlow)
    models, grids = Path("data/models"), Path("data/grids") / size
    folders = evaluate.Folders(
        student=models / "student" / size,
        schedule=models / f"schedule/{size}.json",
        undistilled=models / "trigflow" / size,
        teacher=models / "teacher",
        raw=Path("data/raw"),
        judge=models / "judge",
        cache=Path("data/cache/evaluate"),
    )
    with track.stage("evaluate", size=size, evaluate=params, sampling=sampling, trigflow=trigflow) as run:
        threads.use_fastest()
        outcome = evaluate.run(params, sampling, trigflow.sigma_d, folders, size)
        files = [Path(file) for file in params.protocols]
        public, looked = folder_student.run(files, folders.student, Path("data/cache/protocols"), Path(), size)
        outcome.result["protocols"] = public
        evaluate.write_grids(outcome, grids)
        folder_student.keep(looked, grids / "protocols")
        plots.scores(outcome.result, Path(f"data/plots/scores-{size}.png"))
        plots.tasks(outcome.result, Path(f"data/plots/tasks-{size}.png"))
        plots.pareto(outcome.result, Path(f"data/plots/pareto-{size}.png"))
        scores = Path(f"data/metrics/evaluate/{size}.json")
        storage.write_json(scores, outcome.result)
        run.file(scores)
        run.scores(outcome.result)
        run.metrics(folder_student.headline(public))
        series = {0: "teacher"} | {int(steps): f"{steps}_step" for steps in outcome.shown["student"]}
        for steps, name in series.items():
            run.picture(Image.open(grids / f"{name}.png"), f"evaluate_{size}/0_is_the_teacher", steps)
        plotted = [Path(f"data/plots/{kind}-{size}.png") for kind in ("scores", "tasks", "pareto")]
        for path in (grids / "teacher.png", grids / "teacher_vs_student.png", *plotted):
            run.picture(Image.open(path), f"evaluate/{path.stem}")


if __name__ == "__main__":
    main()
