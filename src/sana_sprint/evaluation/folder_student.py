"""A student under the public protocols of evaluate.protocols: it draws and is scored as by `sana-sprint sample` and
`score`; a stage that was cut short draws and looks at nothing twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sana_sprint import storage
from sana_sprint.evaluation import (
    folder_draw,
    folder_geneval,
    folder_pictures,
    folder_protocol,
    folder_scores,
    pages,
    picture_cache,
    sheets,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ENTERED = ("protocol", "protocol_digest", "pictures", "scores")  # in evaluate's JSON
KEPT = (*ENTERED, "drawn")
DRAWN, LOOKED = "drawn", "looked"  # folders of the cache: pictures, and what judges saw in pictures


class Looked(NamedTuple):
    """A folder of pictures that GenEval's judge looked at: what to call it, and all that `score` says of it."""

    name: str
    pictures: Path
    scored: dict[str, Any]


def run(
    files: Sequence[Path], student: Path, cache: Path, root: Path, name: str
) -> tuple[dict[str, Any], list[Looked]]:
    """Returns {protocol: {steps: {"protocol", "protocol_digest", "pictures", "scores"}}} of a student's folder, for
    every step count that a protocol has times for, and what GenEval's judge looked at. Pictures are kept under `cache`
    as those of the last run of this name, and what was seen in pictures for a month after its last use; deleting them
    is always safe."""
    found: dict[str, Any] = {}
    looked, used = [], set()
    for file in files:
        protocol = folder_protocol.load(root / file)
        found[file.stem] = {}
        for steps in protocol.drawn.times:
            how = folder_draw.described(root / file, student, int(steps), root)
            pictures = cache / DRAWN / storage.digest_of(how)[: picture_cache.KEY_DIGITS]
            used.add(pictures.name)
            folder_draw.run(root / file, student, pictures, int(steps), root)
            scored = folder_scores.run(root / file, pictures, cache / LOOKED, root)
            found[file.stem][steps] = {key: scored[key] for key in ENTERED}
            if "looked" in scored:
                looked.append(Looked(f"{file.stem}-{steps}", pictures, scored))
    if used:
        picture_cache.forget(cache / DRAWN, name, used)
        picture_cache.sweep(cache / LOOKED)
    return found, looked


def keep(looked: Sequence[Looked], folder: Path) -> None:
    """Writes a folder each: every picture shrunk to a tile, with its boxes and the reason of a failure in scored.json
    and in GenEval's own results.jsonl. The stage report makes pages of them."""
    for one in looked:
        with storage.whole_folder(folder / one.name) as unfinished:
            seen = one.scored["looked"]
            lines = [line | {"picture": tile(one.pictures, line["picture"], unfinished)} for line in seen]
            storage.write_json(
                unfinished / folder_pictures.SCORED, {key: one.scored[key] for key in KEPT} | {"looked": lines}
            )
            storage.write_text(unfinished / "results.jsonl", folder_geneval.results_lines(seen))


def tile(pictures: Path, name: str, folder: Path) -> str:
    """Writes a picture of a folder as a tile below another; returns its path there."""
    small = name.rpartition(".")[0] + ".webp"
    path = folder / folder_pictures.TILES / small
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sheets.tile(folder_pictures.read(pictures / name, None), sheets.TILE_MAX_PX)
    image.save(path, "WEBP", lossless=max(image.size) <= pages.LOSSLESS_PX, quality=pages.QUALITY)
    return small


def headline(found: dict[str, Any]) -> dict[str, float]:
    """Returns the scores worth a chart in MLflow, `<protocol>/<score>_<steps>_step`: none per task or per category."""
    return {
        f"{name}/{score}_{steps}_step": part["value"]
        for name, by_steps in found.items()
        for steps, one in by_steps.items()
        for score, part in one["scores"].items()
        if "value" in part
    }
