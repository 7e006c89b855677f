"""The commands of mlflow/RUNBOOK.md, word for word."""

import json
import re
from pathlib import Path

RUNBOOK = Path(__file__).resolve().parents[2] / "mlflow/RUNBOOK.md"


def commands(section: str) -> list[str]:
    """The indented blocks of a section, each with its lines as they stand."""
    (body,) = re.findall(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", RUNBOOK.read_text(), re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"(?:^    .*\n)+", body, re.MULTILINE)
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE).strip() for block in blocks]


def reader_actions() -> list[str]:
    """What the runbook's policy for readers allows them on the bucket."""
    statements = json.loads(commands("A key that only reads")[0])["Statement"]
    return sorted({action for one in statements if one["Effect"] == "Allow" for action in one["Action"]})
