"""Lets the benchmark run with torch, diffusers, transformers and what these require: the little of Lightning and of
ruamel.yaml that it needs stands in the place of whichever is missing. Pydantic must be there; transformers 5
brings it."""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

import torch
import yaml
from torch import nn


class Module(nn.Module):
    """As Lightning's LightningModule, for a module that is its own trainer."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


class Yaml:
    """As ruamel.yaml's YAML, for profiles that it has read before."""

    def __init__(self, **_: Any) -> None: ...

    def load(self, text: str) -> Any:
        return yaml.safe_load(text)


STAND_INS: dict[str, dict[str, dict[str, Any]]] = {
    "lightning": {
        "lightning": {"LightningModule": Module},
        "lightning.pytorch": {},
        "lightning.pytorch.strategies": {"ModelParallelStrategy": object},
    },
    "ruamel.yaml": {
        "ruamel": {},
        "ruamel.yaml": {"YAML": Yaml},
        "ruamel.yaml.error": {"YAMLError": yaml.YAMLError},
    },
}


def stand_in() -> None:
    """Puts modules in the places of the packages that are missing."""
    for package, modules in STAND_INS.items():
        try:
            importlib.import_module(package)
        except ModuleNotFoundError:
            for name, content in modules.items():
                sys.modules[name] = types.ModuleType(name)
                sys.modules[name].__dict__.update(content)


stand_in()
