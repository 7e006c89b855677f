"""Stage report: params report, register; data/metrics, data/models/schedule, data/grids, data/plots
-> data/reports/index.html, data/reports/protocols, data/plots/curves. The champion of the registry and the table of
`make ablation` stand in it where there are any.
"""

from pathlib import Path

from sana_sprint import config
from sana_sprint.evaluation import report
from sana_sprint.registry import compare, lineage, origin, track


def main() -> None:
    """Runs the stage in the repository root."""
    params, register = config.load(config.Report), config.load(config.Register)
    page = Path("data/reports/index.html")
    with track.stage("report", report=params) as run:
        champions = compare.against_champions(register.model_name, lineage.repository())
        made = {path: digest for path, (_, digest) in origin.outputs(origin.locked(lineage.repository())).items()}
        run.metrics(report.run(params, Path("data"), page, Path("data/plots/curves"), champions, made))
        run.file(page)


if __name__ == "__main__":
    main()
