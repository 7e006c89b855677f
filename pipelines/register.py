"""Stage register: params register; data/models/student/<size>, data/metrics/evaluate/<size>.json
-> data/reports/registration/<size>.json and a version in the MLflow registry.
"""

import argparse
from pathlib import Path

from sana_sprint import config, storage
from sana_sprint.registry import register, track


def main() -> None:
    """Registers the student of one size."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--size", required=True)
    size = arguments.parse_args().size
    params = config.load(config.Register)
    with track.stage("register", size, register=params) as run:
        student, scores = Path("data/models/student") / size, Path("data/metrics/evaluate") / f"{size}.json"
        registration = run.patiently(lambda: register.register(student, scores, params, run))
        storage.write_json(Path("data/reports/registration") / f"{size}.json", registration)
    said = "registered" if registration["new"] else "the same weights are registered already as"
    print(f"{said} {registration['name']} version {registration['version']}, alias {registration['alias']}")


if __name__ == "__main__":
    main()
