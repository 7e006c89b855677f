"""A small working folder for single stage scripts: params, a profile of a user's own pictures, its own store."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from sana_sprint import storage

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Told:
    """What a stage left: exit code and both streams."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Work:
    """The folder, and the stages run in it."""

    root: Path
    store: Path

    @classmethod
    def make(cls, root: Path, store: Path) -> "Work":
        """Makes the folder with profile `own`: pictures of data/source/own at 16 px."""
        for name in ("pipelines", "profiles"):
            shutil.copytree(ROOT / name, root / name)
        (root / "params.yaml").write_text("profile: own\n")
        (root / "data/source/own").mkdir(parents=True)
        work = cls(root, shutil.copy(store, root / "mlflow.db"))
        source = {"kind": "folder", "eval_share": 0.3}
        sections = YAML(typ="safe").load((root / "profiles/smoke.yaml").read_text())
        sections["prepare"] |= {"resolution_px": 16, "images_per_shard": 5, "source": source}
        sections["validate"] = {"suite": "folder", "quarantine_share_max": 0.0}
        work.profile(sections)
        return work

    @property
    def source(self) -> Path:
        return self.root / "data/source/own"

    def sections(self) -> dict:
        return YAML(typ="safe").load((self.root / "profiles/own.yaml").read_text())

    def profile(self, sections: dict) -> None:
        with (self.root / "profiles/own.yaml").open("w") as file:
            YAML().dump(sections, file)

    def stage(self, name: str, before: Callable[[], None] | None = None, **env: str) -> Told:
        """Runs a stage's script, named with its size where it has one; `before` is called in its process."""
        script, *size = name.split()
        settings = {
            "PYTHONPATH": str(ROOT / "src"),
            "OMP_NUM_THREADS": "1",
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.store}",
        }
        done = subprocess.run(
            [sys.executable, f"pipelines/{script}.py", *(f"--size={one}" for one in size)],
            cwd=self.root,
            env=os.environ | settings | env,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            preexec_fn=before,
        )
        return Told(done.returncode, done.stdout, done.stderr)

    def refused(self, name: str, *parts: str, before: Callable[[], None] | None = None, **env: str) -> str:
        """Returns the one line that a stage ends with; it must hold `parts`, and nothing half-written may stay."""
        told = self.stage(name, before, **env)
        assert told.code == 1, told
        lines = told.err.strip().splitlines()
        assert sum("error: " in line for line in lines) == 1, told.err
        assert lines[-1].startswith(f"error: stage {name}: "), told.err
        assert "Traceback" not in told.err + told.out
        for part in parts:
            assert part in lines[-1]
        assert [p for p in (self.root / "data").rglob("*") if storage.UNFINISHED in p.name] == []
        return lines[-1]

    def succeeds(self, name: str) -> Told:
        told = self.stage(name)
        assert told.code == 0, told.err
        return told

    def has_raw(self) -> bool:
        return (self.root / "data/raw").exists()


def small_files(limit: int) -> Callable[[], None]:
    """Returns what limits the size of any file that a process writes, in bytes."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
