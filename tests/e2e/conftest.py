"""`make demo` on the smoke profile, run once from nothing in a clone."""

import re
import time
from dataclasses import dataclass

import pytest

from tests.e2e.clone import Clone


@dataclass(frozen=True)
class Finished:
    """A clone after `make demo`: what it printed, how long it took, what the outputs were."""

    clone: Clone
    log: str
    elapsed_s: float
    outputs: dict[str, tuple[str, str]]


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    clone = Clone.make(tmp_path_factory.mktemp("smoke") / "a clone", "demo")
    started_at = time.monotonic()
    log = clone.run("make", "demo", "PROFILE=smoke", "AT_ONCE=2")
    elapsed_s = time.monotonic() - started_at
    return Finished(clone, log, elapsed_s, clone.outputs())


@pytest.fixture(autouse=True)
def _plain_path(tmp_path_factory):
    """The clone's path holds a space, and little else that could go wrong."""
    assert re.fullmatch(r"[\w/.-]+", str(tmp_path_factory.getbasetemp()))
