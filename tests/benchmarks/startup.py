"""How long each stage takes to import what it works with, in a process of its own: the part of its start that is ours.

    python tests/benchmarks/startup.py                 every stage of pipelines/, once
    python tests/benchmarks/startup.py --times 5       the least of five

The floor beside it is `import torch`, which every stage that computes pays. Starting Ray, connecting to MLflow and
reading data come on top.
"""

from __future__ import annotations

import argparse
import ast
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

PIPELINES = Path(__file__).parents[2] / "pipelines"
FLOOR = "import torch"
SETTLED = "from sana_sprint import process; process.settle()"  # as track.stage begins


def imports(script: Path) -> str:
    """Returns the import statements of a script, those inside its functions too, as one program."""
    found = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, (ast.Import, ast.ImportFrom))]
    return "\n".join(ast.unparse(node) for node in found)


def seconds(program: str) -> tuple[float, float]:
    """Returns the wall and CPU seconds of a program in a process of its own."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - began
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=1, help="runs a stage, of which the least counts")
    times = parser.parse_args().times
    programs = {FLOOR: FLOOR} | {path.stem: f"{SETTLED}\n{imports(path)}" for path in sorted(PIPELINES.glob("*.py"))}
    sys.stdout.write("| stage | wall s | CPU s |\n|---|---|---|\n")
    for name, program in programs.items():
        found = [seconds(program) for _ in range(times)]
        wall, cpu = (min(one[i] for one in found) for i in (0, 1))
        sys.stdout.write(f"| {name} | {wall:.1f} | {cpu:.1f} |\n")


if __name__ == "__main__":
    main()
