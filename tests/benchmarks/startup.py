"""How long each stage takes until its first useful work: until it opens the first file that it reads from data/.

    python tests/benchmarks/startup.py                          the stages of this folder, after a `make demo` in it
    python tests/benchmarks/startup.py --folder x --times 3     those of another, the least of three

Each stage is its own process, which opens its run in a copy of the folder's MLflow store (sqlite) and ends where the
reading begins, so that nothing is computed or written. What it reads first stands behind it; `import torch`, which
every stage that computes pays, stands beside them. `prepare` draws its scenes without reading.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
FLOOR = "import torch"
OUTPUTS = ("mlflow", "cache", "checkpoints")  # of data/: what a stage reads of its own past, or writes
UNTIL_IT_READS = """
import os, runpy, sys
from pathlib import Path
data = Path("data")
places = [place for place in data.iterdir() if place.name not in ("metrics", "mlflow")]  # by these MLflow knows the run
inputs = {str(path): str(place) for place in places for path in (place.resolve(), place.absolute(), place)}
def look(event, arguments):
    parquet = sys.modules.get("pyarrow.parquet")
    if hasattr(parquet, "read_table") and not hasattr(parquet, "unseen"):  # it opens files without an event
        parquet.unseen = parquet.read_table
        parquet.read_table = lambda path, *rest, **more: reads(path) or parquet.unseen(path, *rest, **more)
    if event in ("open", "os.scandir", "os.listdir"):
        reads(arguments[0])
def reads(path):
    for one, place in inputs.items() if isinstance(path, (str, os.PathLike)) else ():
        if str(path) == one or str(path).startswith(one + "/"):
            sys.stdout.write(place + str(path)[len(one):])
            sys.stdout.flush()
            os._exit(0)
sys.addaudithook(look)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
os._exit(1)
"""


def stages() -> dict[str, list[str]]:
    """Returns the words that run each stage, of those per size the one of base."""
    by_size = {"prune", "convert", "distill", "schedule", "evaluate", "register"}
    scripts = sorted((ROOT / "pipelines").glob("*.py"))
    return {
        path.stem: [str(path), *(["--size", "base"] if path.stem in by_size else [])]
        for path in scripts
        if path.stem != "prepare"
    }


def workspace(folder: Path, place: Path) -> None:
    """Makes in `place` what a stage finds in `folder`: params, profiles, the inputs of data/."""
    (place / "data").mkdir()
    for name in ("params.yaml", "profiles", "dvc.yaml", "dvc.lock", "mlflow", "src", "pipelines"):
        (place / name).symlink_to(folder / name)
    for part in (folder / "data").iterdir():
        if part.name not in OUTPUTS:
            (place / "data" / part.name).symlink_to(part)
    (place / "data/mlflow").mkdir()
    shutil.copy(folder / "data/mlflow/mlflow.db", place / "data/mlflow")


def seconds(words: list[str], place: Path) -> tuple[float, float, list[str]]:
    """Returns the wall and CPU seconds of a Python program in a process of its own, and the path that it told."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "SANA_SPRINT_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        [sys.executable, *words], cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - began
    if done.returncode:
        raise SystemExit(f"{words[-1]} ended without reading:\n{done.stderr[-2000:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout.splitlines()[-1:]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT, help="a clone in which `make demo` has ended")
    parser.add_argument("--times", type=int, default=1, help="runs a stage, of which the least counts")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    if not (folder / "data/models/schedule").is_dir():
        raise SystemExit(f"{folder}: no finished `make demo` there; name one with --folder")
    programs = {FLOOR: ["-c", FLOOR]} | {name: ["-c", UNTIL_IT_READS, *words] for name, words in stages().items()}
    sys.stdout.write("| stage | wall s | CPU s | reads first |\n|---|---|---|---|\n")
    for name, words in programs.items():
        found = []
        for _ in range(arguments.times):
            with tempfile.TemporaryDirectory() as place:
                workspace(folder, Path(place))
                found.append(seconds(words, Path(place)))
        wall, cpu = (min(one[i] for one in found) for i in (0, 1))
        (first,) = found[0][2] or ("",)
        sys.stdout.write(f"| {name} | {wall:.1f} | {cpu:.1f} | {first} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
