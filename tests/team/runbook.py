"""The commands of mlflow/RUNBOOK.md, word for word."""

import re

from tests.team import parts


def commands(section: str) -> list[str]:
    """The indented blocks of a section, each with its lines as they stand."""
    text = (parts.ROOT / "mlflow/RUNBOOK.md").read_text()
    (body,) = re.findall(rf"^## {re.escape(section)}.*?\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"(?:^    .*\n)+", body, re.MULTILINE)
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE).strip() for block in blocks]
