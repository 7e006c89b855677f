"""Stage judge: params judge; data/raw -> data/models/judge, data/metrics/judge.json."""

from pathlib import Path

from sana_sprint import config, storage
from sana_sprint.evaluation import judge_stage
from sana_sprint.models import threads
from sana_sprint.registry import track


def main() -> None:
    """Runs the stage in the repository root."""
    params = config.load(config.Judge)
    with track.stage("judge", judge=params) as run:
        threads.use_fastest()
        summary = judge_stage.run(params, Path("data/raw"), Path("data/models/judge"))
        storage.write_json(Path("data/metrics/judge.json"), summary)
        run.metrics(summary)


if __name__ == "__main__":
    main()
