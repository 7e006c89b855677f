"""Pictures for a protocol by a student, in the layout that is scored: what `sana-sprint sample` draws.

A picture is a file, written whole; a run that was cut short draws the ones that are missing. Its noise depends on seed,
prompt and number alone, and a call of the network holds the same pictures whatever is missing. One command draws in a
folder at a time, with as many workers as SANA_SPRINT_WORKERS says.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from tqdm import tqdm

from sana_sprint import config, storage
from sana_sprint.evaluation import drawing, folder_protocol, generate, geneval, picture_cache
from sana_sprint.evaluation.drawing import Order
from sana_sprint.evaluation.protocol import Prompt

if TYPE_CHECKING:
    import numpy as np

    from sana_sprint.evaluation.folder_protocol import Distances, GenEval

DRAWN = "drawn.json"  # beside the pictures: by what they were drawn


@dataclass(frozen=True)
class Target:
    """A picture to be: its file, its caption, and its number, which fixes its noise."""

    path: Path
    caption: str
    number: int


def run(protocol_file: Path, model: Path, folder: Path, steps: int, root: Path) -> tuple[int, int]:
    """Draws what is missing in `folder`; returns how many pictures were drawn and how many there are. Raises ValueError
    for a step count without times, and for a folder whose pictures were drawn otherwise."""
    protocol = folder_protocol.load(protocol_file)
    how = described(protocol_file, model, steps, root)
    claim(folder, how)
    if isinstance(protocol, folder_protocol.GenEval):
        targets = geneval_targets(protocol, folder, root)
    else:
        targets = captioned_targets(protocol, folder, root)
    order = Order(
        folder=model.resolve(),
        digest=how["model"],
        network="student",
        sampling=sampling_of(protocol, steps, how["drawn"]["times"]),
        sigma_d=sigma_d_of(model),
        steps=steps,
        seed=protocol.drawn.seed,
        precision=protocol.drawn.precision,
        at_once=protocol.drawn.pictures_a_call,
        prompts=[Prompt(one.number, "", one.caption, "", "", {}) for one in targets],
    )
    return draw(order, targets), len(targets)


def described(protocol_file: Path, model: Path, steps: int, root: Path) -> dict[str, Any]:
    """Returns all that a folder's pictures depend on, as JSON types. Raises ValueError for a step count without times,
    and for a model or prompts that are not there."""
    protocol = folder_protocol.load(protocol_file)
    times = protocol.drawn.times.get(str(steps))
    if times is None:
        raise ValueError(
            f"{protocol_file}: drawn.times has no list for {steps} steps; it has {sorted(protocol.drawn.times)}"
        )
    return {
        "drawn": protocol.drawn.model_dump() | {"times": times},
        "instruction": instruction(protocol),
        "steps": steps,
        "size_px": protocol.size_px.model_dump(),
        "model": storage.digest(generate.checked(model)),
        "prompts": storage.digest(existing(root / protocol.asked)),
    } | picture_cache.made_by(picture_cache.CODE, picture_cache.LIBRARIES)


def instruction(protocol: GenEval | Distances) -> list[str]:
    """Returns the lines that stand before each prompt."""
    from diffusers import SanaSprintPipeline

    stock = inspect.signature(SanaSprintPipeline.__call__).parameters["complex_human_instruction"].default
    return list(stock) if protocol.drawn.instruction == "pipeline" else []


def draw(order: Order, targets: list[Target]) -> int:
    """Draws and writes the pictures of an order whose files are missing; returns how many those are."""
    missing = {target.number: target.path for target in targets if not target.path.is_file()}
    calls = [call for call in order.calls() if any(prompt.index in missing for prompt in call.prompts)]
    with drawing.Crew() as crew, tqdm(total=len(missing), desc="sample", mininterval=3) as bar:
        for call, pictures in crew.draw(calls):
            for prompt, picture in zip(call.prompts, pictures, strict=True):
                if prompt.index in missing:
                    write(missing[prompt.index], picture)
                    bar.update()
    return len(missing)


def write(path: Path, picture: np.ndarray) -> None:
    """Writes a picture, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with storage.whole_file(path) as unfinished:
        Image.fromarray(picture).save(unfinished, "PNG")


def sigma_d_of(model: Path) -> float:
    """Returns sigma_d of a student of ours, or that of a released folder by its scheduler."""
    ours, stock = model / "sampling.json", model / "scheduler/scheduler_config.json"
    found = storage.read_json(ours).get("sigma_d") if ours.is_file() else storage.read_json(stock).get("sigma_data")
    if found is None:
        raise ValueError(f"{stock}: no sigma_data; name a SanaSprintPipeline folder, whose scheduler is SCMScheduler")
    return float(found)


def existing(path: Path) -> Path:
    """Returns the path of a file that must be there."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; see README, section Protocols, for what belongs there")
    return path


def claim(folder: Path, how: dict[str, Any]) -> None:
    """Writes by what the pictures of a folder are drawn, or checks that it is what is there."""
    path = folder / DRAWN
    if path.is_file():
        there = storage.read_json(path)
        other = sorted(key for key in how.keys() | there.keys() if how.get(key) != there.get(key))
        if other:
            raise ValueError(
                f"{path}: the pictures there were drawn by another model or otherwise ({', '.join(other)}); name an "
                "empty folder"
            )
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder}: not empty, and no {DRAWN} tells how its pictures were drawn; name an empty folder")
    storage.write_json(path, how)


def sampling_of(protocol: GenEval | Distances, steps: int, times: list[float]) -> config.Sampling:
    """Returns how a protocol has pictures drawn, as the sampler takes it; nothing of it concerns a teacher."""
    drawn = protocol.drawn
    return config.Sampling(
        height_px=protocol.size_px.height,
        width_px=protocol.size_px.width,
        guidance=drawn.guidance,
        teacher_guidance=drawn.guidance,
        teacher_steps=1,
        teacher_shift=1.0,
        max_tokens=drawn.max_tokens,
        instruction=instruction(protocol),
        times={str(steps): times},
    )


def geneval_targets(protocol: GenEval, folder: Path, root: Path) -> list[Target]:
    """Returns the pictures of GenEval's prompts, and writes each prompt's metadata.jsonl."""
    path, per_prompt = root / protocol.metadata, protocol.pictures_per_prompt
    lines = geneval.read_metadata(path)
    if len(lines) != protocol.prompts:
        raise ValueError(f"{path}: {len(lines)} prompts, the protocol asks for {protocol.prompts}")
    targets = []
    for number, line in enumerate(lines):
        place = folder / f"{number:05d}"
        storage.write_text(place / "metadata.jsonl", json.dumps(line) + "\n")
        names = [place / f"samples/{k:04d}.png" for k in range(per_prompt)]
        targets += [Target(name, line["prompt"], number * per_prompt + k) for k, name in enumerate(names)]
    return targets


def captioned_targets(protocol: Distances, folder: Path, root: Path) -> list[Target]:
    """Returns the pictures of the reference folder's captions, in the order of their names."""
    captions = folder_protocol.captions(protocol, root)
    return [
        Target(folder / one["category"] / f"{name}.png", one["prompt"], number)
        for number, (name, one) in enumerate(captions.items())
    ]
