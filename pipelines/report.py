"""Stage report: params report; data/metrics, data/grids, data/plots -> data/reports/index.html,
data/plots/curves.
"""

from pathlib import Path

from sana_sprint import config
from sana_sprint.evaluation import report
from sana_sprint.registry import track


def main() -> None:
    """Runs the stage in the repository root."""
    params = config.load(config.Report)
    page = Path("data/reports/index.html")
    with track.stage("report", report=params) as run:
        run.metrics(report.run(params, Path("data"), page, Path("data/plots/curves")))
        run.file(page)


if __name__ == "__main__":
    main()
