"""What a model's folder may hold: weights as safetensors, text, pictures; nothing that runs when it is read.

Folders that we write, and those that come from a registry or from elsewhere, are checked before anything in them is
loaded. Reading safetensors, JSON and text executes nothing; pickle does.
"""

from __future__ import annotations

import os
import re
import stat
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML, YAMLError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_VARIABLE = "SANA_SPRINT_MODEL_FILE_MAX_MB"
MAX_MB = 40_000  # without the variable: four times a 4.8B network in bfloat16
ALLOWED = (
    ".safetensors",
    ".json",
    ".jsonl",
    ".txt",
    ".md",
    ".yaml",
    ".yml",
    ".png",
    ".jpg",
    ".webp",
    ".model",
    ".jinja",
)
NAMED = ("MLmodel", "registered_model_meta", "LICENSE", "NOTICE", ".gitattributes")
OWN_CODE = Path("sprint_model.py")  # models from code: what MLflow copies beside our registered weights
OPENED = ("python_model", "data", "model_path", "code")  # keys of a flavour: MLflow opens them below the folder
PICKLE_PROTOCOLS = range(2, 6)  # a pickle of these begins with 0x80 and its protocol


def check(folder: Path, called: str | None = None, without: str | None = None) -> None:
    """Raises ValueError naming every file of a folder that must not be there: links, what may run when it is loaded,
    files over SANA_SPRINT_MODEL_FILE_MAX_MB (10^6 bytes), and kinds of files that no model of ours has. What is called
    `without` in it is passed over."""
    found = [path for path in entries(folder) if path.relative_to(folder).parts[0] != without]
    faults = [f"{path.relative_to(folder)}: {why}" for path in found if (why := fault(path, folder))]
    if faults:
        told = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
        raise ValueError(f"{called or folder} is refused: {told}; save weights as safetensors and remove the rest")


def entries(folder: Path) -> list[Path]:
    """Returns all files and links below a folder, without following links."""
    found = []
    for place, folders, files in os.walk(folder, followlinks=False):
        links = [name for name in folders if Path(place, name).is_symlink()]
        found += [Path(place, name) for name in (*files, *links)]
    return sorted(found)


def fault(path: Path, folder: Path) -> str | None:
    """Returns why a file must not be there, or None."""
    about = path.lstat()
    if stat.S_ISLNK(about.st_mode):
        return f"a link to {path.readlink()}"
    if not stat.S_ISREG(about.st_mode):
        return "no plain file"
    limit_mb = max_mb()
    if about.st_size > limit_mb * 10**6:
        return f"{about.st_size / 10**6:.0f} MB, over {MAX_VARIABLE} of {limit_mb}"
    if pickled(path):
        return "holds pickle, which runs code when it is read"
    if path.name == "MLmodel":
        return model_file(path)
    known = path.suffix in ALLOWED or path.name in NAMED or own_code(path.relative_to(folder))
    return None if known else "no kind of file that a model of this project has"


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
    """Tells whether a file is a pickle, or an archive that holds one, as torch.save and numpy write them."""
    with path.open("rb") as file:
        first = file.read(2)
    if len(first) == 2 and first[0] == 0x80 and first[1] in PICKLE_PROTOCOLS:
        return True
    if first != b"PK" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith((".pkl", ".pickle")) for name in archive.namelist())


def model_file(path: Path) -> str | None:
    """Returns why an MLmodel file would have MLflow load a pickle or reach out of the model's folder, or None."""
    try:
        content = YAML(typ="safe").load(path.read_text())
        named = list(_paths(content))
    except (YAMLError, UnicodeDecodeError, AttributeError, TypeError):
        return "no MLmodel file"
    for key, place in named:
        if place.endswith((".pkl", ".pickle")):
            return f"{key} is {place}, a pickle"
        if PurePosixPath(place).is_absolute() or PureWindowsPath(place).anchor or ".." in re.split(r"[/\\]", place):
            return f"{key} is {place}, which leads out of the model's folder"
    return None


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
