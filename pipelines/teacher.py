"""Stage teacher: params teacher, sampling; data/models/foundation, data/latents -> data/models/teacher."""

from pathlib import Path

from sana_sprint import config
from sana_sprint.registry import track


def main() -> None:
    """Fine-tunes the foundation into the teacher."""
    params, sampling = config.load(config.Teacher), config.load(config.Sampling)
    with track.stage("teacher", teacher=params, sampling=sampling) as run:
        from sana_sprint.models import threads
        from sana_sprint.training import callbacks, teacher

        threads.use_fastest()
        models = Path("data/models")
        watch = callbacks.Curves(Path("data/metrics/curves/teacher.json"), run.recorder(), 20)
        teacher.fine_tune(params, sampling, models / "foundation", Path("data/latents"), models / "teacher", [watch])
        run.metrics(watch.last())


if __name__ == "__main__":
    main()
