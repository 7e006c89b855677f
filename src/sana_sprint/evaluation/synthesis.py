"""A corpus for who has prompts and no pictures: the teacher draws them, in the layout that source `folder` reads.

A picture is a file, written whole; a run that was cut short draws the ones that are missing. metadata.jsonl, by which
the folder is read, is written last. Noise depends on seed and number alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sana_sprint import storage
from sana_sprint.data import folder as source
from sana_sprint.evaluation import drawing, folder_draw, generate, picture_cache
from sana_sprint.evaluation.drawing import Order
from sana_sprint.evaluation.folder_draw import Target
from sana_sprint.evaluation.protocol import Prompt

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Literal

    from sana_sprint.config import Sampling


@dataclass(frozen=True)
class Asked:
    """What is asked for: so many pictures of each line of a file, by the teacher of a folder from noises of `seed`."""

    prompts: Path
    teacher: Path
    pictures_per_prompt: int
    seed: int
    precision: Literal["float32", "bf16-mixed"]


def run(asked: Asked, sampling: Sampling, folder: Path) -> tuple[int, int]:
    """Draws what is missing in `folder`, guided and in as many steps as `sampling` says of the teacher, and writes
    metadata.jsonl; returns how many pictures were drawn and how many there are. Raises ValueError naming the file for
    prompts that cannot be read, for a pipeline that is no teacher, and for a folder whose pictures are others."""
    if asked.pictures_per_prompt < 1:
        raise ValueError(f"pictures per prompt: {asked.pictures_per_prompt}; ask for one or more")
    prompts, digest = read(asked.prompts), storage.digest(generate.checked(asked.teacher))
    refuse_student(asked.teacher)
    how = {
        "prompts": storage.digest_of(prompts),
        "pictures_per_prompt": asked.pictures_per_prompt,
        "seed": asked.seed,
        "precision": asked.precision,
        "teacher": digest,
        "sampling": sampling.model_dump(exclude={"times", "guidance"}),
        "pictures_a_call": drawing.at_once(sampling),
    } | picture_cache.made_by(picture_cache.CODE, picture_cache.LIBRARIES)
    folder_draw.claim(folder, how)
    captions = [prompt for prompt in prompts for _ in range(asked.pictures_per_prompt)]
    targets = [Target(folder / f"{number:06d}.png", caption, number) for number, caption in enumerate(captions)]
    order = Order(
        folder=asked.teacher.resolve(),
        digest=digest,
        network="teacher",
        sampling=sampling,
        sigma_d=1.0,  # the flow's latents are of unit scale
        steps=sampling.teacher_steps,
        seed=asked.seed,
        precision=asked.precision,
        at_once=drawing.at_once(sampling),
        prompts=[Prompt(one.number, "", one.caption, "", "", {}) for one in targets],
    )
    drawn = folder_draw.draw(order, targets)
    lines = [json.dumps({"file_name": one.path.name, "text": one.caption}, ensure_ascii=False) for one in targets]
    storage.write_text(folder / source.TABLES[0], "\n".join(lines) + "\n")
    return drawn, len(targets)


def read(path: Path) -> list[str]:
    """Returns the prompts of a UTF-8 text file, one a line, spaces made single, empty lines left out. Raises ValueError
    naming file and line for none, and for one that stands there twice."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; write your prompts there, one a line")
    seen: dict[str, int] = {}
    for number, line in enumerate(source.text_of(path).splitlines(), start=1):
        prompt = " ".join(line.split())
        if prompt in seen:
            remedy = "delete one of them; several pictures of a prompt are --per-prompt's"
            raise ValueError(f"{path} line {number}: the prompt of line {seen[prompt]} again; {remedy}")
        if prompt:
            seen[prompt] = number
    if not seen:
        raise ValueError(f"{path}: holds no prompt; write them there, one a line")
    return list(seen)


def refuse_student(folder: Path) -> None:
    """Raises ValueError naming a folder whose network is a student's: the guidance is in it, no pass is without."""
    path = folder / "transformer/config.json"
    if storage.read_json(path).get("guidance_embeds"):
        raise ValueError(f"{path}: of a student; name a teacher's folder, such as data/models/foundation")
