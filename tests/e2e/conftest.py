"""`make demo` on the smoke profile, run once from nothing in a clone."""

import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from sana_sprint import storage
from tests.e2e.clone import Clone, environment

FIRST = ("metrics", "reports")  # folders of data that are kept as `make demo` left them


@dataclass(frozen=True)
class Finished:
    """A clone after `make demo`: what it printed, how long it took, what the outputs were, and a folder with copies of
    those of FIRST, which stay what they were whatever is done with the clone."""

    clone: Clone
    log: str
    elapsed_s: float
    outputs: dict[str, tuple[str, str]]
    first: Path


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Made once for all processes that have the same SMOKE_CLONE."""
    shared = os.environ.get("SMOKE_CLONE")
    place = Path(shared) if shared else tmp_path_factory.mktemp("smoke")
    told = place / "finished.json"
    with FileLock(place / "lock"):
        if not told.is_file():
            storage.write_json(told, make_demo(place))
    content = storage.read_json(told)
    outputs = {path: (stage, digest) for path, (stage, digest) in content.pop("outputs").items()}
    root = place / "a clone"
    return Finished(Clone(root, environment(root)), outputs=outputs, first=place / "first", **content)


def make_demo(place):
    """Runs `make demo` in a new clone."""
    clone = Clone.make(place / "a clone", "demo")
    started_at = time.monotonic()
    log = clone.run("make", "demo", "PROFILE=smoke", "AT_ONCE=2")
    elapsed_s = time.monotonic() - started_at
    for name in FIRST:
        shutil.copytree(clone.root / "data" / name, place / "first" / "data" / name)
    return {"log": log, "elapsed_s": elapsed_s, "outputs": clone.outputs()}


@pytest.fixture(autouse=True)
def _plain_path(tmp_path_factory):
    """The clone's path holds a space, and little else that could go wrong."""
    assert re.fullmatch(r"[\w/.-]+", str(tmp_path_factory.getbasetemp()))
