"""What an output was made from: the data of dvc.lock above a stage, by path and digest, and the machine it was made on.
Data are the outputs of stages and the sources: what a stage reads below data/ and no stage makes.

dvc.lock knows what every finished stage read and wrote; the stage at work is read from dvc.yaml, because DVC writes its
entry when it has ended. So a source that it reads is hashed anew, as DVC does it.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Any

import yaml

from sana_sprint import config, host, storage

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping
    from pathlib import Path

MADE_FROM = "made_from"  # the tag of runs and versions: {path: digest} of the data above them, as JSON
MADE_ON = "made_on"  # the tag of runs and versions: `machine`, as JSON
SIZE, PROFILE = "${item.size}", "${profile}"  # what stands in dvc.yaml for a student's size, and the profile in use
PACKAGES = ("torch", "diffusers", "transformers", "lightning", "ray", "mlflow", "dvc", "numpy")


def locked(root: Path) -> dict[str, Any]:
    """Returns the stages of dvc.lock by name, {} where there is none."""
    path = root / "dvc.lock"
    return parsed(path.read_text()) if path.is_file() else {}


def parsed(text: str) -> dict[str, Any]:
    """Returns the stages of the text of dvc.yaml or dvc.lock; libyaml reads such long files in a tenth of the time."""
    content = yaml.load(text, Loader=yaml.CSafeLoader)
    return dict(content["stages"]) if content and "stages" in content else {}


def outputs(stages: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Returns {path: (stage, digest)} of all outputs of dvc.lock."""
    return {out["path"]: (name, out["md5"]) for name, one in stages.items() for out in one.get("outs", [])}


def reads(root: Path, stage: str, size: str | None) -> list[str]:
    """Returns the data that dvc.yaml says a stage reads, [] for one it does not know."""
    found = parsed((root / "dvc.yaml").read_text()).get(stage, {}).get("deps", [])
    paths = [path.replace(SIZE, size or "") for path in found if path.startswith("data/")]
    return [path.replace(PROFILE, config.profile(root)) if PROFILE in path else path for path in paths]


def overlaps(path: str, other: str) -> bool:
    """Tells whether one path is the other or lies in it."""
    return path == other or path.startswith(f"{other}/") or other.startswith(f"{path}/")


def within(data: Mapping[str, str], paths: Collection[str]) -> dict[str, str]:
    """Returns what of {path: digest} these paths are, hold or lie in."""
    return {path: digest for path, digest in data.items() if any(overlaps(path, one) for one in paths)}


def unmade(stages: Mapping[str, Any], paths: Iterable[str]) -> list[str]:
    """Returns those of the paths that no stage of dvc.lock makes: the sources."""
    made = outputs(stages)
    return [path for path in paths if not any(overlaps(path, out) for out in made)]


def read_by(stages: Mapping[str, Any], name: str) -> dict[str, str]:
    """Returns {path: digest} of what a stage of dvc.lock read below data/, by the paths of the stage itself."""
    deps = stages.get(name, {}).get("deps", [])
    return {dep["path"]: dep["md5"] for dep in deps if dep["path"].startswith("data/")}


def digests(stages: Mapping[str, Any]) -> dict[str, str]:
    """Returns {path: digest} of all outputs and sources of dvc.lock."""
    read = {path: digest for name in stages for path, digest in read_by(stages, name).items()}
    sources = {path: read[path] for path in unmade(stages, read)}
    return sources | {path: digest for path, (_, digest) in outputs(stages).items()}


def above(stages: Mapping[str, Any], paths: Iterable[str]) -> dict[str, str]:
    """Returns {path: digest} of the outputs of dvc.lock that these paths are, and of all data those were made from."""
    made, found, asked = outputs(stages), dict[str, str](), list(paths)
    while asked:
        wanted = asked.pop()
        for out, (stage, digest) in made.items():
            if overlaps(wanted, out) and out not in found:
                read = read_by(stages, stage)
                found |= {out: digest} | {path: read[path] for path in unmade(stages, read)}
                asked += read
    return dict(sorted(found.items()))


def made_from(root: Path, stage: str, size: str | None) -> dict[str, str]:
    """Returns {path: digest} of all data above a stage at work; {} outside a repository with dvc.yaml."""
    if not (root / "dvc.yaml").is_file():
        return {}
    stages, paths = locked(root), reads(root, stage, size)
    return above(stages, paths) | hashed(root, unmade(stages, paths))


def hashed(root: Path, sources: Collection[str]) -> dict[str, str]:
    """Returns {path: digest} of sources as they are now; those that are not there, or in no repository of DVC's, are
    left out."""
    if not sources:
        return {}
    from dvc.exceptions import NotDvcRepoError
    from dvc.fs import localfs
    from dvc.repo import Repo
    from dvc_data.hashfile.build import build

    found, here = {}, [path for path in sources if (root / path).exists()]
    with contextlib.suppress(NotDvcRepoError), Repo(str(root)) as repo:
        for path in here:
            how = {"ignore": repo.dvcignore, "dry_run": True}
            _, _, built = build(repo.cache.local, str(root / path), localfs, "md5", **how)
            found[path] = str(built.hash_info.value)
    return found


def read_alike(stages: Mapping[str, Any], stage: str, size: str, made: Mapping[str, str]) -> bool:
    """Tells whether a run that was made from these data read what the stage read that dvc.lock knows."""
    of_size = f"{stage}@{size}"
    read = read_by(stages, of_size if of_size in stages else stage)
    return within(made, read) == within(digests(stages), read)


def is_digest(text: str) -> bool:
    """Tells whether a text is a digest as dvc.lock writes them: 32 hexadecimal digits, of a folder with .dir."""
    return re.fullmatch(r"[0-9a-f]{32}(\.dir)?", text) is not None


def is_sha256(text: str) -> bool:
    """Tells whether a text is a sha256, as versions and cards tell it of the data manifest."""
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def digest_of(root: Path, path: str) -> str:
    """Returns the digest by which dvc.lock knows an output or source. Raises ValueError naming what dvc.lock knows."""
    known = digests(locked(root))
    if path.rstrip("/") in known:
        return known[path.rstrip("/")]
    near = [one for one in known if overlaps(path.rstrip("/"), one)]
    remedy = f"name {' or '.join(near[:5])}" if near else "name an output of a stage, such as data/raw, or its digest"
    raise ValueError(f"{path}: no output or source that dvc.lock knows; {remedy}")


def machine() -> dict[str, Any]:
    """Returns what a run was made on: system, processor, cores, GPUs, Python, and the versions of the main packages."""
    return {
        "system": platform.platform(),
        "cpu": host.cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "gpus": host.gpu_names(),
        "python": sys.version.split()[0],
        "packages": dict(installed()),
    }


def machine_told(machine: Mapping[str, Any]) -> str:
    """Returns a `machine` in one line."""
    if not machine:
        return "not recorded"
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    place = [machine["cpu"], f"{machine['cores']} cores", *machine.get("gpus", []), machine["system"]]
    return f"{', '.join(place)}; Python {machine['python']}, {packages}"


def installed() -> Iterator[tuple[str, str]]:
    """Yields the main packages that are installed, with their versions."""
    for name in PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def version_tags(root: Path, size: str) -> dict[str, str]:
    """Returns what a version's tags say of its data, its machine, and the digest of requirements.lock (`none` where
    there is none)."""
    path = root / "requirements.lock"
    return {
        MADE_FROM: json.dumps(made_from(root, "register", size)),
        MADE_ON: json.dumps(machine()),
        "environment_digest": storage.digest(path) if path.is_file() else "none",
    }
