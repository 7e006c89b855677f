"""The modules of maths/ as fixtures, so that the same tests also judge copies with a planted fault."""

import importlib
from types import ModuleType

import pytest


def _fixture(name: str):
    @pytest.fixture(name=name)
    def module() -> ModuleType:
        return importlib.import_module(f"sana_sprint.maths.{name}")

    return module


trigflow, scm, forward, difference, dmd, sample, times, ladd, flow, importance, ema = map(
    _fixture,
    ("trigflow", "scm", "forward", "difference", "dmd", "sample", "times", "ladd", "flow", "importance", "ema"),
)
