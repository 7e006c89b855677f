"""A clone of the repository in a path with a space in it, with an interpreter there too, and how to run it."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from ruamel.yaml import YAML

from sana_sprint import storage

ROOT = Path(__file__).resolve().parents[2]
SIZES = ("small", "base")
LIMIT_S = 1800


def environment(root: Path) -> dict[str, str]:
    """One thread, the clone's own code and interpreter, the clone's own MLflow store."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "RAY_", "DVC_", "SANA_SPRINT_"))}
    path = [str(root / ".venv/bin"), str(Path(sys.executable).parent), kept["PATH"]]
    return kept | {
        "PATH": os.pathsep.join(path),
        "PYTHONPATH": str(root / "src"),
        "OMP_NUM_THREADS": "1",
        "SANA_SPRINT_THREADS": "1",
        "DVC_NO_ANALYTICS": "1",
        "HF_HUB_OFFLINE": "1",
        "TQDM_MININTERVAL": "1",
    }


def files() -> list[Path]:
    """The repository's files: tracked ones that are there, and new ones that git does not ignore."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(words, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    return [Path(name) for name in names if name and (ROOT / name).exists()]


def interpreter(place: Path) -> None:
    """Makes place/bin/python, which sees the packages of the interpreter that runs the tests."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    packages = [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
    (target,) = place.glob("lib/python3.*/site-packages")
    (target / "shared.pth").write_text("".join(f"import site; site.addsitedir({p!r})\n" for p in packages))


@dataclass
class Clone:
    """A clone, and what its last command printed (stdout and stderr as one, in order)."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)

    @classmethod
    def make(cls, root: Path, profile: str) -> "Clone":
        for name in files():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
        clone = cls(root, environment(root))
        for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "a clone"]):
            subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=root, check=True)
        interpreter(root / ".venv")
        (root / ".venv/ready").touch()
        clone.use(profile)
        return clone

    @property
    def store(self) -> str:
        return f"sqlite:///{self.root / 'data/mlflow/mlflow.db'}"

    def use(self, profile: str) -> None:
        (self.root / "params.yaml").write_text(f"profile: {profile}\n")

    def run(self, *words: str, code: int = 0, **env: str) -> str:
        """Runs a command to its end and returns what it printed. The exit code must be `code`."""
        done = subprocess.run(
            words,
            cwd=self.root,
            env=self.env | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == code, done.stdout[-4000:]
        return done.stdout

    def start(self, log: Path, *words: str) -> subprocess.Popen[bytes]:
        """Starts a command as the head of its own process group, as a shell does."""
        with log.open("wb") as file:
            return subprocess.Popen(
                words, cwd=self.root, env=self.env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )

    def processes(self) -> list[psutil.Process]:
        """The living processes that work in this clone."""
        found = []
        for one in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                here = one.cwd().startswith(str(self.root)) or str(self.root) in " ".join(one.cmdline())
                if here and one.pid != os.getpid() and one.status() != psutil.STATUS_ZOMBIE:
                    found.append(one)
        return found

    def quiet(self, limit_s: float = 90) -> list[psutil.Process]:
        """Waits until no process works in this clone; returns those that still do at the limit."""
        deadline = time.monotonic() + limit_s
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return left

    def outputs(self) -> dict[str, tuple[str, str]]:
        """Every output that dvc.lock names: path to (stage, digest of what lies there)."""
        stages = YAML(typ="safe").load((self.root / "dvc.lock").read_text())["stages"]
        paths = {out["path"]: stage for stage, entry in stages.items() for out in entry.get("outs", [])}
        return {path: (stage, storage.digest(self.root / path)) for path, stage in paths.items()}

    def half_written(self) -> list[Path]:
        return [path for path in (self.root / "data").rglob(f"{storage.UNFINISHED}*") if "mlflow" not in path.parts]


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the process group, as a shell's `kill -9` of a job."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the process and all below it at once, as a crash of the machine: Ray's daemons lead their own
    process groups. From the top down, or a `dvc` would see its stage die and begin to write about it.
    """
    below = psutil.Process(process.pid).children(recursive=True)
    for one in (process, *below):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def stages(log: str) -> list[str]:
    """The stages that a `dvc repro` ran, in order; `make demo` puts the size before the lines of two at once."""
    return re.findall(r"^(?:\w+: )?Running stage '([\w@]+)'", log, re.MULTILINE)
