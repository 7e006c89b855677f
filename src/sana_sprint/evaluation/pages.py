"""HTML pages that open offline: templates of this folder, pictures embedded."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sana_sprint import storage

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

LOSSLESS_PX = 128
QUALITY = 85  # of larger ones, on WebP's scale to 100


def write(page: Path, template: str, content: dict[str, Any]) -> None:
    """Writes a page that opens offline, from a template of this folder and what it names."""
    environment = Environment(
        loader=PackageLoader("sana_sprint.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    storage.write_text(page, environment.get_template(template).render(content))


def write_experiment(page: Path, title: str, words: str, markdown: str, plots_of: list[Path]) -> None:
    """Writes the page of an experiment: the tables of a Markdown text, titled by their first column, and plots."""
    tables = [
        {"title": head[0], "head": head, "rows": rows}
        for head, *rows in (
            [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines() if "---" not in line]
            for block in markdown.split("\n\n")
            if block.startswith("|")
        )
    ]
    shown = [(path.stem.replace("_", " "), embedded(path)) for path in plots_of]
    write(page, "experiment.html.j2", {"title": title, "words": words, "tables": tables, "plots": shown})


def picture(image: Image.Image) -> str:
    """Returns a picture as a data URI: WebP, without loss up to 128 px, where its edges would blur."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=max(image.size) <= LOSSLESS_PX, quality=QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def embedded(path: Path) -> str:
    """Returns a PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
