"""Stage validate: params validate; data/raw -> data/reports/validation, data/metrics/validate.json."""

from pathlib import Path

from sana_sprint import config, storage
from sana_sprint.data import checks
from sana_sprint.registry import track


def main() -> None:
    """Runs the stage in the repository root."""
    params = config.load(config.Validate)
    with track.stage("validate", validate=params) as run:
        out = Path("data/reports/validation")
        report = checks.run(params, Path("data/raw"), Path("profiles/suites"), out)
        storage.write_json(Path("data/metrics/validate.json"), report.metrics())
        run.metrics(report.metrics())
        if report.broken:
            print(report.table())
        report.require()


if __name__ == "__main__":
    main()
