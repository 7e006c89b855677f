"""What a model's folder may hold: weights as safetensors, text, pictures; nothing that runs when it is read.

Folders that we write, and those that come from a registry or from elsewhere, are checked before anything in them is
loaded. Reading safetensors, JSON and text executes nothing; pickle does. Whether a file is what its name says is
file_kinds.py's part.
"""

from __future__ import annotations

import os
import pickletools
import re
import stat
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML, YAMLError

from sana_sprint.registry import file_kinds

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_VARIABLE = "SANA_SPRINT_MODEL_FILE_MAX_MB"
MAX_MB = 40_000  # without the variable: four times a 4.8B network in bfloat16
HUB_CACHE = ".cache"  # what `hf download --local-dir` notes of its files; no part of a model
OWN_CODE = Path("sprint_model.py")  # models from code: what MLflow copies beside our registered weights
FROM_CODE = "mlflow.pyfunc.loaders.code_model"  # the loader that unpickles nothing, where `python_model` is not named
PICKLE_PROTOCOLS = range(2, 6)  # a pickle of these begins with 0x80 and its protocol
IMPORTS = {"GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"}  # what a pickle needs to call anything
OPENED = ("python_model", "data", "model_path", "code")  # keys of a flavour: MLflow opens them below the folder


def check(folder: Path, called: str | None = None, without: str | None = None, *, registered: bool = False) -> None:
    """Raises ValueError naming every file of a folder that must not be there: links, what may run when it is loaded,
    files over SANA_SPRINT_MODEL_FILE_MAX_MB (10^6 bytes), kinds of files that no model of ours has, and files that are
    not what their names say. What is called `without` in it is passed over. A `registered` model holds the
    code of mlflow/ beside its pipeline, which is held to its digest."""
    found = [path for path in entries(folder) if path.relative_to(folder).parts[0] != without]
    if faults := [f"{path.relative_to(folder)}: {why}" for path in found if (why := fault(path, folder, registered))]:
        raise refusal(faults, called or str(folder))


def refusal(faults: list[str], called: str) -> ValueError:
    """Returns the error that names the files of a model that must not be there."""
    told = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
    return ValueError(f"{called} is refused: {told}; save weights as safetensors and remove the rest")


def check_given(folder: Path) -> None:
    """Raises ValueError as `check` does for a folder that a user names, where `hf download` may have left its notes;
    and for a snapshot in the Hub's cache, which is made of links, with the command that brings files."""
    place = folder.resolve()
    if (folder / "model_index.json").is_symlink() and place.parent.name == "snapshots":
        owner, _, name = place.parents[1].name.removeprefix("models--").partition("--")
        raise ValueError(
            f"{folder} is a snapshot in the Hub's cache, whose files are links: download them by `hf download "
            f"{owner}/{name} --revision {place.name} --local-dir FOLDER` and name that folder"
        )
    check(folder, without=HUB_CACHE)


def entries(folder: Path) -> list[Path]:
    """Returns all files and links below a folder, without following links."""
    found = []
    for place, folders, files in os.walk(folder, followlinks=False):
        links = [name for name in folders if Path(place, name).is_symlink()]
        found += [Path(place, name) for name in (*files, *links)]
    return sorted(found)


def fault(path: Path, folder: Path, registered: bool) -> str | None:
    """Returns why a file must not be there, or None."""
    about = path.lstat()
    if stat.S_ISLNK(about.st_mode):
        return f"a link to {path.readlink()}"
    if not stat.S_ISREG(about.st_mode):
        return "no plain file"
    if too_big := oversized(about.st_size):
        return too_big
    if pickled(path):
        return "holds pickle, which runs code when it is read"
    if registered and own_code(path.relative_to(folder)):
        return None
    return file_kinds.fault(path) or (model_file(path) if path.name == "MLmodel" else None)


def oversized(size_bytes: int) -> str | None:
    """Returns in words that a file is over the limit, or None."""
    limit_mb = max_mb()
    return f"{size_bytes / 10**6:.0f} MB, over {MAX_VARIABLE} of {limit_mb}" if size_bytes > limit_mb * 10**6 else None


def own_code(place: Path) -> bool:
    """Tells whether a place is that of the registered model's own code, or of what Python compiled of it there."""
    return place == OWN_CODE or compiled(place)


def compiled(place: Path) -> bool:
    """Tells whether a place is that of what Python compiled of the registered model's own code."""
    return place.parent == Path("__pycache__") and place.suffix == ".pyc" and place.stem.split(".")[0] == OWN_CODE.stem


def max_mb() -> int:
    """Returns the limit on a file, in 10^6 bytes. Raises ValueError when the variable is no positive number."""
    chosen = os.environ.get(MAX_VARIABLE, "").strip()
    if chosen and not (chosen.isdigit() and int(chosen)):
        raise ValueError(f"{MAX_VARIABLE}={chosen}: must be a positive number of MB")
    return int(chosen) if chosen else MAX_MB


def pickled(path: Path) -> bool:
    """Tells whether a file is a pickle, of whatever protocol, or an archive that holds one, as torch.save and numpy
    write them. Nothing of it is run. A safetensors file is none, though its length may begin as a pickle does."""
    if path.suffix == file_kinds.WEIGHTS and file_kinds.fault(path) is None:
        return False
    with path.open("rb") as file:
        first = file.read(2)
    if len(first) == 2 and first[0] == 0x80 and first[1] in PICKLE_PROTOCOLS:
        return True
    if first == b"PK" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith((".pkl", ".pickle")) for name in archive.namelist())
    return path.stat().st_size <= file_kinds.TEXT_MAX_MB * 10**6 and _calls(path.read_bytes())


def _calls(content: bytes) -> bool:
    """Tells whether bytes are a pickle, to its end, that imports something. Those of protocols 0 and 1 have no mark."""
    try:
        names = {code.name for code, _, _ in pickletools.genops(content)}
    except Exception:  # noqa: BLE001  ValueError and others, by what it is instead
        return False
    return not names.isdisjoint(IMPORTS)


def model_file(path: Path) -> str | None:
    """Returns why an MLmodel file would have MLflow load a pickle or reach out of the model's folder, or None."""
    try:
        content = YAML(typ="safe").load(path.read_text())
        named, loader = list(_paths(content)), _loader(content)
    except (YAMLError, UnicodeDecodeError, AttributeError, TypeError):
        return "no MLmodel file"
    if loader != FROM_CODE:
        return f"loader_module is {loader}, and {FROM_CODE} alone reads no pickle"
    for key, place in named:
        if key == "python_model" or place.endswith((".pkl", ".pickle")):
            return f"{key} is {place}, a pickle"
        if PurePosixPath(place).is_absolute() or PureWindowsPath(place).anchor or ".." in re.split(r"[/\\]", place):
            return f"{key} is {place}, which leads out of the model's folder"
    return None


def _loader(content: dict[str, Any]) -> str:
    return str(content.get("flavors", {}).get("python_function", {}).get("loader_module"))


def _paths(content: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields what MLflow opens below the model's folder by the words of an MLmodel file, with the key that names it."""
    for flavour in content.get("flavors", {}).values():
        environment = flavour.get("env")
        places = {key: flavour.get(key) for key in OPENED}
        places |= environment if isinstance(environment, dict) else {"env": environment}
        places |= {f"artifacts.{name}": told.get("path") for name, told in (flavour.get("artifacts") or {}).items()}
        yield from ((key, str(place)) for key, place in places.items() if place is not None)
    example = content.get("saved_input_example_info") or {}
    yield from ((key, str(place)) for key, place in example.items() if key.endswith("_path"))
