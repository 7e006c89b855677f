"""Stage schedule: params schedule, evaluate, sampling, trigflow; data/models/{student/<size>, judge}, data/raw
-> data/models/schedule/<size>.json, data/metrics/schedule-<size>.json, data/plots/schedule-<size>.png.
"""

import argparse
from pathlib import Path

from PIL import Image

from sana_sprint import config, storage
from sana_sprint.evaluation import plots, schedule
from sana_sprint.registry import track


def main() -> None:
    """Searches the times of the student of one size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", required=True, help="a size of prune.sizes")
    size = parser.parse_args().size
    params, sampling = config.load(config.Schedule), config.load(config.Sampling)
    judged, trigflow = config.load(config.Evaluate), config.load(config.TrigFlow)
    models, plot = Path("data/models"), Path(f"data/plots/schedule-{size}.png")
    sections = {"schedule": params, "evaluate": judged, "sampling": sampling, "trigflow": trigflow}
    with track.stage("schedule", size, **sections) as run:
        student = schedule.Student(models / "student" / size, Path("data/raw"), models / "judge")
        found = schedule.run(params, judged, sampling, trigflow.sigma_d, student)
        lists = models / f"schedule/{size}.json"
        storage.write_json(lists, found)
        storage.write_json(Path(f"data/metrics/schedule-{size}.json"), found["gains"])
        plots.schedule(found, plot)
        run.file(lists)
        run.metrics(schedule.headline(found))
        run.picture(Image.open(plot), f"schedule/{size}")
    for steps, times in found["times"].items():
        print(f"schedule {size}  {steps} steps: {', '.join(f'{t:g}' for t in times)}")


if __name__ == "__main__":
    main()
