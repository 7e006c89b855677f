"""Stage prepare: params prepare; data/source/<profile> -> data/raw, data/metrics/prepare.json."""

from pathlib import Path

from sana_sprint import config, storage
from sana_sprint.data import prepare
from sana_sprint.registry import track


def main() -> None:
    """Runs the stage in the repository root."""
    params = config.load(config.Prepare)
    with track.stage("prepare", prepare=params) as run:
        summary = prepare.run(params, Path("data/source") / config.profile(), Path("data/raw"))
        storage.write_json(Path("data/metrics/prepare.json"), summary)
        run.metrics(summary)


if __name__ == "__main__":
    main()
